// SPDX-License-Identifier: Apache-2.0
// simulate(): the scheduler and the page pool of the server, on a virtual clock, under a workload.
#pragma once

#include "lk/sched/scheduler.h"
#include "lk/sim/faults.h"
#include "lk/sim/merging.h"
#include "lk/sim/metrics.h"

namespace lk::sim {

struct SimOptions {
  CostModel model;
  SchedulerOptions scheduler;
  Merging merging = Merging::kNever;
  std::vector<SimAdapter> adapters;
  int64_t num_pages = 0;  // of the pool
  double host_bytes = 0;  // of the host tier; 0 = every adapter is on the host
  bool prefetch = true;   // adapters of requests that arrive within a step begin to load at once, as in the server
  MetricOptions metrics;
  FaultOptions faults;
  // After each step: the pool's integrity, token counts, and that no request begins before an earlier one of its tenant
  // whose adapter was ready (max_bypass such requests are allowed). Costs O(pages + requests) a step.
  bool check_invariants = false;
  int64_t max_bypass = 0;
};

// kInvalidArgument when a request could never run or the objective never be met; kInternal when an invariant broke. The
// same options and workload give the same result, to the last bit.
Result<SimResult> simulate(const SimOptions& options, const Workload& workload);

// Time to the first token of a request alone on an idle machine with its adapter resident, in seconds.
double unloaded_ttft_s(const SimOptions& options, const SimRequest& request);

}  // namespace lk::sim
