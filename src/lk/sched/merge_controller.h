// SPDX-License-Identifier: Apache-2.0
// MergeController: carries out what a MergeChooser decides, between scheduler, pool and executor. At most one adapter
// is merged and at most one more is being built. Merged pages go before anybody is preempted, refused admission or kept
// from loading (give_back).
//
// Merging changes the last bits of the merged adapter's results, and which steps are merged depends on the load. So an
// adapter is merged only when that was allowed for it; all others keep the promise that their tokens do not depend on
// their neighbours.
//
// Thread safety: none; engine thread.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>

#include "lk/memory/unified_pool.h"
#include "lk/sched/merge_chooser.h"

namespace lk {

struct MergeControllerOptions {
  double max_pool_share = 0.5;         // merged layers never take more of the pool
  int64_t keep_pages_per_request = 2;  // nor leave fewer pages available than this for each request in the queue
  Micros retry_after = 1'000'000;      // after the pool had no room, or pages were given back
};

struct MergeStats {
  int64_t num_builds = 0, num_refused = 0, num_given_back = 0;  // refused: rounding lost too much
  int64_t num_merged_steps = 0, num_exclusive_steps = 0, num_mode_changes = 0;
  AdapterId merged = kBaseModel;  // built and usable now
  MergeResult last_build;
};

class MergeController {
 public:
  // One request in the queue, running or waiting.
  struct Queued {
    AdapterId adapter = kBaseModel;
    int64_t rows = 0;          // it could put into the next step
    int64_t backlog_rows = 0;  // still to be computed at most
  };

  MergeController(const MergeControllerOptions& options, std::unique_ptr<MergeChooser> chooser, UnifiedPool& pool,
                  Executor& executor);
  ~MergeController();

  // Allows or forbids merging of an adapter; before its first request, since cached pages keep what they were computed
  // with.
  void set_allowed(AdapterId adapter, bool allowed);
  // Before a step is planned. `queue`: oldest first.
  void plan(std::span<const Queued> queue, int64_t max_running, Micros now);
  // Whether this adapter's requests may be in the step being planned.
  bool runs(AdapterId adapter) const { return exclusive_ == kBaseModel || adapter == exclusive_; }
  bool exclusive() const { return exclusive_ != kBaseModel; }
  void end_exclusive() { exclusive_ = kBaseModel; }  // nothing of that adapter could run
  bool any_first() const { return !first_.empty(); }
  bool is_first(AdapterId adapter) const;  // its requests come before all others'
  // After it was planned: decides and sets plan.merged.
  void choose(StepPlan& plan);
  void observe(const StepTimes& times);
  // Gives merged pages back; true if there were any.
  bool give_back(Micros now);
  // An adapter is about to be dropped.
  void forget(AdapterId adapter);

  const MergeStats& stats() const { return stats_; }
  const MergeChooser& chooser() const { return *chooser_; }

 private:
  const MergeFootprint* footprint(AdapterId adapter);  // null when it cannot be merged
  void take_finished();
  void start(AdapterId adapter, int64_t queued, Micros now);
  void drop(AdapterId adapter);

  const MergeControllerOptions options_;
  std::unique_ptr<MergeChooser> chooser_;
  UnifiedPool& pool_;
  Executor& executor_;
  MergeStats stats_;
  std::unordered_map<AdapterId, MergeFootprint> footprints_;  // empty run_lengths: cannot be merged
  std::set<AdapterId> allowed_, refused_;
  AdapterId built_ = kBaseModel, building_ = kBaseModel, exclusive_ = kBaseModel;
  std::vector<AdapterId> first_;
  Micros not_before_ = 0, exclusive_since_ = 0;
  StepShape shape_;                    // of the step being run
  AdapterId merged_now_ = kBaseModel;  // in it
};

}  // namespace lk
