// SPDX-License-Identifier: Apache-2.0
// StepPlan and Executor: the seam between policy and execution. The engine implements Executor with kernels, the
// simulator with a cost model; the scheduler cannot tell them apart.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/sched/request.h"

namespace lk {

// Positions [begin, end) of one sequence, computed in this step. Spans are valid until execute() returns.
struct StepItem {
  const Request* request = nullptr;
  std::span<const int32_t> tokens;  // prompt and output so far; end <= tokens.size()
  int64_t begin = 0, end = 0;
  std::span<const PageId> block_table;  // covers positions [0, end)
  bool sample = false;                  // end == tokens.size() and another token is wanted
  int64_t deltas_from = 0;              // positions before run without the adapter's deltas (Activation)
  // With penalties: the distinct tokens so far, and how often each is in the output (token_counts.h).
  std::span<const std::pair<int32_t, int32_t>> seen;
  bool prompt_logprobs = false;  // score the prompt tokens that follow positions [begin, end)
  // Add those last hidden states of [begin, end) here that the request pools, position by position; reset when
  // begin == 0. Null: not wanted.
  std::vector<double>* hidden_sum = nullptr;
};

struct StepPlan {
  std::vector<StepItem> items;
  int64_t num_tokens = 0;
  // Items of this adapter run on its merged weights, everybody else's on the base (with bit for bit the same results as
  // without it). kBaseModel: nobody is merged. Requires: take_finished_merges() reported it as a success and
  // drop_merge() has not followed.
  AdapterId merged = kBaseModel;
};

struct ItemResult {
  // This request cannot go on: logits that are not finite, a constraint that allows nothing. It ends with it, alone.
  Status error;
  TokenLogprob token;                         // when the item samples
  std::vector<TokenLogprob> prompt_logprobs;  // one per position p of the item with p + 1 < prompt length
};

struct LoadResult {
  AdapterId adapter = kBaseModel;
  Status status;
};

// What a merged copy of the base with one adapter's delta takes, and what it could save.
struct MergeFootprint {
  int64_t num_pages = 0;
  double relative_cost = 0;    // multiply-adds of the delta for one row / those of all base linears
  double build_cost_rows = 0;  // multiply-adds of building / those of all base linears for one row: about the rank
};

struct MergeResult {
  AdapterId adapter = kBaseModel;
  Status status;           // kFailedPrecondition: rounding loses too much; never worth trying again for this version
  Micros build_time = 0;   // from start to end
  Micros engine_time = 0;  // what that took from the engine: processor time / kernel threads
  double build_cost_rows = 0;      // of the footprint
  double rounding_loss = 0;        // ||round(W') - W'|| / ||W' - W|| over the whole adapter
  double worst_rounding_loss = 0;  // of one matrix
  std::string worst_module;
};

// Of the latest execute(), by the executor's clock; all zero when it does not measure.
struct StepTimes {
  Micros total = 0;
  Micros lora = 0;  // the part spent in low-rank products
};

class Executor {
 public:
  virtual ~Executor() = default;
  // The time by the clock of whatever executes: monotonic, never negative. The scheduler has no other.
  virtual Micros now() const = 0;
  virtual int64_t footprint(AdapterId adapter) const = 0;  // pages of an adapter while it is resident
  // Of an activated adapter in a request with this prompt; nullopt: the adapter acts on every position.
  virtual std::optional<Activation> activation(AdapterId, std::span<const int32_t> prompt) const {
    (void)prompt;
    return std::nullopt;
  }
  // Starts filling the pages of an adapter; does not wait. `pages` stays valid until the load is reported.
  virtual void start_load(AdapterId adapter, std::span<const PageId> pages) = 0;
  // The pages of a resident adapter are somebody else's from now on: forget what was in them. No item of the present
  // step is its.
  virtual void evicted(AdapterId adapter) = 0;
  // An adapter will be wanted before long and has no pages yet: a hint to bring its data nearer, from disk into host
  // memory. Does not wait, and costs next to nothing when there is nothing to do.
  virtual void stage(AdapterId) {}
  // Who wanted it is gone. Somebody else who does stages it again.
  virtual void unstage(AdapterId) {}
  // Loads that ended since the last call. With `wait`, blocks until there is one (Requires: a load is under way).
  virtual std::vector<LoadResult> take_finished_loads(bool wait) = 0;
  // Loads that write no page yet end now, as failed; take_finished_loads() reports them, and waits for no file.
  virtual void abandon_loads() {}
  // Those that requests may ask for, as far as it knows.
  virtual std::vector<AdapterId> adapters() const { return {}; }
  // One result per item, in order; the caller's until the next call.
  virtual std::span<ItemResult> execute(const StepPlan& plan) = 0;
  virtual StepTimes last_step_times() const { return {}; }

  // --- Merging (design principle 1). An executor that cannot merge leaves these alone.
  // Why not, when the adapter can not be merged at all.
  virtual Result<MergeFootprint> merge_footprint(AdapterId) const {
    return unsupported("this executor does not merge adapters");
  }
  // Starts building merged weights in the background; the adapter need not be resident. `pages` stays valid until
  // drop_merge(). Requires: merge_footprint() succeeded and the adapter has none.
  virtual void start_merge(AdapterId, std::span<const PageId> pages) { (void)pages; }
  // Merges that ended since the last call, well or not. After a failure drop_merge() must follow.
  virtual std::vector<MergeResult> take_finished_merges() { return {}; }
  // Stops building, or forgets what was built. On return nobody touches the pages any more. Waits for at most one
  // weight panel.
  virtual void drop_merge(AdapterId) {}
};

}  // namespace lk
