// SPDX-License-Identifier: Apache-2.0
// What Metrics has counted, as plain data: copied under its lock, written without it. Internal to metrics*.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "lk/serve/access/usage_ledger.h"
#include "lk/serve/observe/histogram.h"
#include "lk/serve/observe/metric_families.h"
#include "lk/serve/observe/metrics.h"

namespace lk::metrics_detail {

// Bounds of vLLM's histograms: dashboards compute quantiles from exactly these.
inline constexpr double kFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                         1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
inline constexpr double kTokenGap[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                       .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
inline constexpr double kLatency[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
inline constexpr double kTokens[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                                     2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
inline constexpr double kChoices[] = {1, 2, 5, 10, 20};
inline constexpr double kStepTokens[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
// Our own: shorter where a label multiplies the series.
inline constexpr double kFirstTokenShort[] = {.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30};
inline constexpr double kHttp[] = {.001, .005, .01, .05, .1, .5, 1, 5, 10, 60, 300};
inline constexpr double kStep[] = {.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5};
inline constexpr double kDelay[] = {.00005, .0001, .0002, .0005, .001,  .002, .003, .005, .0075, .01,
                                    .0125,  .015,  .0175, .02,   .0225, .025, .03,  .04,  .05,   .075,
                                    .1,     .15,   .2,    .3,    .5,    1,    2,    5};
inline constexpr double kTurn[] = {.00001, .00002, .00005, .0001, .0002, .0005, .001, .002, .003, .004,
                                   .005,   .0075,  .01,    .02,   .05,   .1,    .2,   .5,   1,    5};
inline constexpr double kLoad[] = {.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};

// Requests of one adapter or tenant.
struct Usage {
  int64_t requests = 0, refused = 0, prompt_tokens = 0, output_tokens = 0;
  Histogram first_token{kFirstTokenShort};
};

// Values of one label and what is counted for each. The first `cap` that come keep their name, the others share
// "other": clients must not be able to make the server remember, and the scraper store, as many series as they can
// invent names.
template <class T>
class ByLabel {
 public:
  T& operator()(std::string_view label, int cap) {
    const std::string value = clean_label_value(label);
    if (const auto it = values_.find(value); it != values_.end()) return it->second;
    const bool fits = values_.size() - values_.count("other") < static_cast<size_t>(std::max(cap, 0));
    return values_.try_emplace(fits ? value : "other").first->second;
  }
  auto begin() const { return values_.begin(); }
  auto end() const { return values_.end(); }

 private:
  std::map<std::string, T> values_;
};

struct Route {
  std::map<int, int64_t> by_status;
  Histogram seconds{kHttp};
};

struct State {
  std::map<std::string, int64_t, std::less<>> finished;  // by our finish word; a closed list, see finish_word()
  int64_t cached_tokens = 0;
  Histogram first_token{kFirstToken}, e2e{kLatency}, queue{kLatency}, prefill{kLatency}, decode{kLatency},
      inference{kLatency};
  Histogram prompt_tokens{kTokens}, output_tokens{kTokens}, max_tokens{kTokens}, choices{kChoices};
  Histogram step_tokens{kStepTokens}, step_seconds{kStep}, event_delay{kDelay}, abandoned{kDelay};
  Histogram load_seconds{kLoad};
  int64_t failed_loads = 0, failed_state_writes = 0;
  ByLabel<Usage> adapters, tenants;
  ByLabel<KeyUsage> keys;
  ByLabel<int64_t> refused, endpoints, ignored_fields;
  ByLabel<Route> routes;
  // The highest value each mirrored total has had.
  std::map<std::string, double> mirrored;
};

// A snapshot and the counts of the same scrape; everything scrape() needs.
struct Exposition {
  const Metrics::Options& options;
  const ServerSnapshot& snapshot;
  State state;  // mirrored is up to date
  Histogram token_gap, io_turn;
  double longest_turn = 0, longest_turn_cpu = 0;
  double unix_time = 0;

  void write_vllm(MetricFamilies& out) const;  // metrics_vllm.cpp
  void write_own(MetricFamilies& out) const;   // metrics_own.cpp
};

// The names under which totals of the snapshot are kept monotone.
inline std::array<std::pair<const char*, double>, 31> snapshot_totals(const ServerSnapshot& s) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  return {{{"prompt_tokens", number(s.prompt_tokens)},
           {"generation_tokens", number(s.generation_tokens)},
           {"preemptions", number(s.num_preemptions)},
           {"fair_preemptions", number(s.num_fair_preemptions)},
           {"sampling_failures", number(s.num_sampling_failures)},
           {"prefix_queries", number(s.prefix_queries_tokens)},
           {"prefix_hits", number(s.prefix_hit_tokens)},
           {"steps", number(s.num_steps)},
           {"step_seconds", s.step_seconds},
           {"busy_seconds", s.busy_seconds},
           {"execute_seconds", s.execute_seconds},
           {"computed_tokens", number(s.num_computed_tokens)},
           {"adapter_loads", number(s.num_adapter_loads)},
           {"adapter_prefetches", number(s.num_prefetches)},
           {"adapter_evictions", number(s.num_adapter_evictions)},
           {"host_reads", number(s.host_reads)},
           {"host_failed_reads", number(s.host_failed_reads)},
           {"host_read_seconds", s.host_read_seconds},
           {"host_drops", number(s.host_drops)},
           {"pages_checked", number(s.pages_checked)},
           {"log_lines_dropped", number(s.log_lines_dropped)},
           {"cut_slow_readers", number(s.cut_slow_readers)},
           {"cut_slow_writers", number(s.cut_slow_writers)},
           {"refused_outputs", number(s.refused_outputs)},
           {"refused_connections", number(s.refused_connections)},
           {"merge_builds", number(s.merging.builds)},
           {"merge_refused", number(s.merging.refused)},
           {"merge_given_back", number(s.merging.given_back)},
           {"merge_steps", number(s.merging.merged_steps)},
           {"merge_exclusive_steps", number(s.merging.exclusive_steps)},
           {"merge_mode_changes", number(s.merging.mode_changes)}}};
}

}  // namespace lk::metrics_detail
