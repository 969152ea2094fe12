// SPDX-License-Identifier: Apache-2.0
// simulate_fleet(): many replicas behind routers, on one virtual clock. Routing and failover are the router's own code
// (cluster/fleet_view.h, relay.h, answer_log.h), replicas are the server's scheduler and pool on a cost model.
#pragma once

#include <string>

#include "lk/cluster/fleet_view.h"
#include "lk/sim/metrics.h"
#include "lk/sim/simulation.h"

namespace lk::sim {

// What befalls replicas. Means per replica and hour; each kind comes by itself.
struct FleetFaults {
  double kills = 0;       // the process is gone, and back after repair_s
  double hangs = 0;       // it does nothing for hang_s, then goes on as if nothing had been
  double partitions = 0;  // nothing passes between it and one router for hang_s; what was sent arrives afterwards
  double drains = 0;      // it takes nothing new, ends once it is empty, and is back after repair_s
  double slowdowns = 0;   // its steps take 10 times as long for hang_s
  double refusals = 0;    // it answers whatever is new with 503 for hang_s
  double repair_s = 20, hang_s = 5;
  // Parts of all, in [0, 1]: requests that whoever is asked refuses for good (400); adapters that have other weights at
  // one start of a replica than elsewhere, under the same name.
  double rejected = 0, other_weights = 0;
};

struct FleetSimOptions {
  SimOptions replica;  // of each one; its metrics' SLO, its faults and its invariants are not used
  int replicas = 8, routers = 1;
  std::string policy = "cost";
  std::string planner = "greedy";  // of moves (cluster/planner.h)
  bool placement = true;           // homes and hints to prefetch, unless the planner is off or dLoRA's
  double ilp_limit_s = 0.2;
  double report_interval_s = 0.1;
  double report_age_s = 0;                          // how old a report is when it arrives
  double slo_first_token_s = 2, slo_token_s = 0.1;  // both, or the request is not within its objective
  FleetFaults faults;
  uint64_t seed = 1;
};

struct FleetResult {
  int64_t requests = 0, done = 0, given_up = 0;  // given up: no replica was there to answer or to go on
  int64_t rejected = 0;                          // refused for good
  double slo_attainment = 0;                     // of all requests
  Summary ttft_s, s_per_token, longest_gap_s;
  Summary queueing_s_per_token;  // waiting for the first token, beyond what it takes on an idle replica, by tokens
  double makespan_s = 0;
  int64_t output_tokens = 0, recomputed_tokens = 0;  // recomputed: of prompts and outputs, where answers went on
  FleetView::Counts others;
  int64_t hints = 0;  // adapters that replicas were told to have in memory
  int64_t mismatches = 0;
  int64_t kills = 0, hangs = 0, partitions = 0, drains = 0, slowdowns = 0, refusals = 0;
  int64_t adapter_loads = 0, disk_reads = 0, preemptions = 0;
  double busy_max_over_mean = 1;  // time in steps, of replicas that were never killed
};

// kInvalidArgument for options that make no fleet; kInternal when a request was lost, ended twice or got a token out of
// turn. The same options and workload give the same result, to the last bit.
Result<FleetResult> simulate_fleet(const FleetSimOptions& options, const Workload& workload);

}  // namespace lk::sim
