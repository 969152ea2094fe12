// SPDX-License-Identifier: Apache-2.0
// MergeController: the gate through which a scheduler merges. It carries out what a MergeChooser decides: takes pages
// of the pool, has the executor build merged weights into them, and says which steps run on them. At most one adapter
// is merged and at most one more is being built. Merged pages go before anybody is preempted, refused admission or kept
// from loading (give_back).
//
// Merging changes the last bits of the merged adapter's results, and which steps are merged depends on the load. So an
// adapter is merged only when that was allowed for it; all others keep the promise that their tokens do not depend on
// their neighbours.
//
// Thread safety: none; engine thread.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>

#include "lk/memory/unified_pool.h"
#include "lk/merging/chooser.h"
#include "lk/sched/load_breaker.h"
#include "lk/sched/merge_gate.h"

namespace lk {

struct MergeStats {
  int64_t num_builds = 0, num_given_back = 0;
  int64_t num_refused = 0, num_failed = 0;  // builds: rounding lost too much, never tried again; for a passing reason
  int64_t num_merged_steps = 0, num_exclusive_steps = 0, num_mode_changes = 0;
  AdapterId merged = kBaseModel;  // built and usable now
  MergeResult last_build;
};

class MergeController : public MergeGate {
 public:
  // `pool` and `executor` outlive it.
  MergeController(std::unique_ptr<MergeChooser> chooser, UnifiedPool& pool, Executor& executor);
  ~MergeController() override;

  // Allows merging of an adapter; before its first request, since cached pages keep what they were computed with.
  void allow(AdapterId adapter) { known_[adapter].allowed = true; }
  Turn plan(std::span<const Queued> queue, int64_t max_running, Micros now) override;
  void choose(StepPlan& plan) override;
  void observe(const StepTimes& times) override;
  AdapterId give_back(Micros now) override;
  void forget(AdapterId adapter) override;

  const MergeStats& stats() const { return stats_; }
  const MergeChooser& chooser() const { return *chooser_; }

 private:
  struct Known {
    std::optional<MergeFootprint> footprint;  // once it was asked for; no pages: cannot be merged
    bool allowed = false, refused = false;    // refused: rounding loses too much
    uint64_t round = 0;                       // the last pass over requests that came upon it
    size_t place = 0;                         // and where it put it
    bool may_be_merged() const { return allowed && !refused; }
  };
  Known& known(AdapterId adapter);  // its footprint asked for
  // Whether a pass over requests that began with ++round_ meets the adapter for the first time: it gets this place.
  bool meets_first(Known& known, size_t place) const;
  void take_finished(Micros now);
  void start(AdapterId adapter, int64_t queued, Micros now);
  void drop(AdapterId adapter);

  std::unique_ptr<MergeChooser> chooser_;
  UnifiedPool& pool_;
  Executor& executor_;
  MergeStats stats_;
  std::unordered_map<AdapterId, Known> known_;
  uint64_t round_ = 0;
  LoadBreaker breaker_;  // of builds that failed and may yet succeed
  AdapterId built_ = kBaseModel, building_ = kBaseModel, exclusive_ = kBaseModel;
  Micros not_before_ = 0, exclusive_since_ = 0;
  MergeView view_;                     // of the step being planned
  StepMix mix_;                        // of the step being run
  AdapterId merged_now_ = kBaseModel;  // in it
};

}  // namespace lk
