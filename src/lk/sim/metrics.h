// SPDX-License-Identifier: Apache-2.0
// What a simulation measures. Recorder takes notes while it runs; result() turns them into figures.
//
// Service of a tenant is w_p per prompt token computed (when its request's first token is made) and w_q per output
// token (1 and 2, as in VTC, arXiv:2401.00588 §3.1), divided by the tenant's weight where tenants are compared.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lk/merging/controller.h"
#include "lk/sched/sequence.h"
#include "lk/sim/sim_executor.h"
#include "lk/sim/workload.h"

namespace lk::sim {

enum class Outcome : uint8_t { kPending, kDone, kCancelled, kRejected, kFailed };

struct RequestRecord {
  Micros arrival = 0, first_step = -1, first_token = -1,
         finish = -1;                // first_step: when the step began that computed its first tokens
  int32_t produced = 0, cached = 0;  // tokens
  Outcome outcome = Outcome::kPending;
};

struct Summary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Summary summarise(std::vector<double>& values);  // reorders them

// Values by powers of 2^(1/32): quantiles within 2.2 %.
class LogHistogram {
 public:
  void add(double value);
  Summary summary() const;

 private:
  double quantile(double q) const;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double sum_ = 0, max_ = 0;
};

struct TenantFigures {
  std::string name;
  double weight = 1;
  int64_t requests = 0, done = 0, rejected = 0, input_tokens = 0, output_tokens = 0;
  double service = 0;       // in the window of arrivals
  double service_rate = 0;  // per second of it
  double slo_attainment = 0;
  Summary ttft_s;
};

// Sum over tenants of min(best rate - own rate, |asked rate - own rate|) in windows of 60 s (VTC's service difference).
struct ServiceDifference {
  int64_t num_windows = 0;
  double max = 0, mean = 0, variance = 0;
};

struct TimelinePoint {
  double time_s = 0;
  int64_t running = 0, waiting = 0, adapter_pages = 0, kv_pages = 0;
  double max_difference = 0;    // between any two tenants' weighted service so far
  std::vector<double> service;  // by tenant; empty with more than 64
};

struct SimResult {
  int64_t requests = 0, done = 0, rejected = 0, cancelled = 0, failed = 0;
  double duration_s = 0;                                                       // of the arrivals
  double makespan_s = 0;                                                       // to the end of the last request
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;  // inside the window of arrivals
  double drained_requests_per_s = 0, drained_output_tokens_per_s = 0,
         drained_total_tokens_per_s = 0;  // over the makespan
  double slo_s = 0, slo_attainment = 0, satisfaction = 0;
  Summary ttft_s, itl_s, e2e_s;
  std::vector<TenantFigures> tenants;
  double max_accumulated_difference = 0;  // over the window of arrivals
  double max_backlogged_difference =
      0;                 // over all intervals in which two tenants both had waiting requests; 0 past 32 tenants
  double vtc_bound = 0;  // 2 max(w_p L, w_q M) / least weight (Theorem 4.4)
  ServiceDifference service_difference;
  double jain_index = 1;  // of weighted service in the window
  int64_t adapter_loads = 0, failed_loads = 0, cold_loads = 0, adapter_evictions = 0, judged_loads = 0;
  double hidden_loads = 0;  // share of judged loads that delayed nobody: their request was not due when they ended
  double one_step_loads =
      0;                     // share that cost their request one step: it joined the step after the one they ran beside
  double load_delay_ms = 0;  // mean of the others: load begun to request begun
  int64_t steps = 0, computed_tokens = 0, recomputed_tokens = 0, cached_prompt_tokens = 0, preemptions = 0,
          fair_preemptions = 0;
  double mean_step_ms = 0, mean_step_sequences = 0, busy_fraction = 0;
  MergeStats merges;
  int64_t max_bypass = 0;  // only when invariants are checked; see SimOptions
  std::vector<TimelinePoint> timeline;
};

struct MetricOptions {
  double input_weight = 1, output_weight = 2;  // w_p, w_q
  double slo_s = 6;                            // first token; S-LoRA §4.3
  int timeline_points = 200;
};

class Recorder {
 public:
  // Both references must outlive this.
  Recorder(const MetricOptions& options, const Workload& workload, const SimExecutor& executor);

  void on_submit(int32_t request);
  void on_event(const RequestEvent& event, Micros step_start);
  void on_end(int32_t request, Outcome outcome);
  // After each step, in the order of time.
  void on_step(Micros step_start, int64_t num_sequences, const TimelinePoint& now);
  const std::vector<RequestRecord>& records() const { return records_; }

  // Everything but the counts that only the scheduler has.
  SimResult result(int64_t pool_tokens) const;

 private:
  void judge_load(AdapterId adapter, Micros submitted, Micros step_start);
  void compare_backlogged();
  void fill_tenants(SimResult& result) const;
  void fill_window(SimResult& result) const;
  ServiceDifference service_difference() const;
  double cost(int64_t input, int64_t output) const {
    return options_.input_weight * static_cast<double>(input) + options_.output_weight * static_cast<double>(output);
  }

  const MetricOptions options_;
  const Workload& workload_;
  const SimExecutor& executor_;
  Micros window_end_;
  std::vector<RequestRecord> records_;
  std::vector<Micros> submitted_;   // when a step could first have taken the request
  std::vector<Micros> last_token_;  // of requests that run
  LogHistogram itl_;

  std::vector<double> service_, window_service_;  // by tenant: weighted; and not, until the window ends
  std::vector<int64_t> backlog_;                  // by tenant: requests that never ran yet
  double max_accumulated_ = 0, max_backlogged_ = 0;
  struct Pair {
    bool active = false;
    double min = 0, max = 0;
  };
  std::vector<Pair> pairs_;
  int64_t window_requests_ = 0, window_tokens_ = 0, window_inputs_ = 0, step_sequences_ = 0, steps_ = 0;

  size_t loads_seen_ = 0;
  std::vector<int64_t> unjudged_load_;  // by adapter: index of its latest load, or -1
  Micros previous_step_ = 0;            // when the step before the current one began
  int64_t judged_ = 0, hidden_ = 0, one_step_ = 0;
  double load_delay_us_ = 0;

  Micros next_point_ = 0;
  std::vector<TimelinePoint> timeline_;
};

}  // namespace lk::sim
