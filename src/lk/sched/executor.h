// SPDX-License-Identifier: Apache-2.0
// StepPlan and Executor: the seam between policy and execution. The engine implements Executor with kernels, the
// simulator with a cost model; the scheduler cannot tell them apart.
#pragma once

#include <span>
#include <vector>

#include "lk/sched/request.h"

namespace lk {

// Positions [begin, end) of one sequence, computed in this step. Spans are valid until execute() returns.
struct StepItem {
  const Request* request = nullptr;
  std::span<const int32_t> tokens;        // prompt and output so far; end <= tokens.size()
  int64_t begin = 0, end = 0;
  std::span<const PageId> block_table;    // covers positions [0, end)
  bool sample = false;                    // end == tokens.size() and another token is wanted
  bool prompt_logprobs = false;           // score the prompt tokens that follow positions [begin, end)
  // Add the last hidden states of [begin, end) here, position by position; reset when begin == 0. Null: not wanted.
  std::vector<double>* hidden_sum = nullptr;
};

struct StepPlan {
  std::vector<StepItem> items;
  int64_t num_tokens = 0;
};

struct ItemResult {
  TokenLogprob token;                         // when the item samples
  std::vector<TokenLogprob> prompt_logprobs;  // one per position p of the item with p + 1 < prompt length
};

struct LoadResult {
  AdapterId adapter = kBaseModel;
  Status status;
};

class Executor {
 public:
  virtual ~Executor() = default;
  // The time by the clock of whatever executes: monotonic, never negative. The scheduler has no other.
  virtual Micros now() const = 0;
  virtual AdapterFootprint footprint(AdapterId adapter) const = 0;
  // Starts filling the pages of an adapter; does not wait. `pages` stays valid until the load is reported.
  virtual void start_load(AdapterId adapter, const AdapterPages& pages) = 0;
  // Loads that ended since the last call. With `wait`, blocks until there is one (Requires: a load is under way).
  virtual std::vector<LoadResult> take_finished_loads(bool wait) = 0;
  // One result per item, in order.
  virtual std::vector<ItemResult> execute(const StepPlan& plan) = 0;
};

}  // namespace lk
