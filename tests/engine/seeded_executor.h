// SPDX-License-Identifier: Apache-2.0
// SeededExecutor: an engine whose background work seems to end when a seed says so. Loading and merging run on threads
// of their own, so what a scheduler sees of them, and with it every later decision, would depend on how fast this
// machine is today; behind this, a seed means the same schedule everywhere.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "lk/base/rng.h"
#include "lk/engine/engine.h"

namespace lk::testing {

class SeededExecutor : public Executor {
 public:
  SeededExecutor(Engine& engine, uint64_t seed) : engine_(engine), rng_(seed) {}

  Micros now() const override { return now_; }  // a step takes a second: what was given back is built again soon
  int64_t footprint(AdapterId adapter) const override { return engine_.footprint(adapter); }
  std::optional<Activation> activation(AdapterId adapter, std::span<const int32_t> prompt) const override {
    return engine_.activation(adapter, prompt);
  }
  void stage(AdapterId adapter) override { engine_.stage(adapter); }
  void unstage(AdapterId adapter) override { engine_.unstage(adapter); }
  void abandon_loads() override { engine_.abandon_loads(); }
  std::vector<AdapterId> adapters() const override { return engine_.adapters(); }
  std::span<ItemResult> execute(const StepPlan& plan) override {
    now_ += 1'000'000;
    return engine_.execute(plan);
  }

  void evicted(AdapterId adapter) override { engine_.evicted(adapter); }
  void start_load(AdapterId adapter, std::span<const PageId> pages) override {
    loading_.push_back(adapter);
    engine_.start_load(adapter, pages);
  }
  // In the order in which the loads began; each waits for its thread once the seed has decided that it is over.
  std::vector<LoadResult> take_finished_loads(bool wait) override {
    std::vector<LoadResult> results;
    while (!loading_.empty() && ((wait && results.empty()) || rng_.below(2) == 0)) {
      const AdapterId next = loading_.front();
      while (!loaded_.contains(next))
        for (LoadResult& load : engine_.take_finished_loads(true)) loaded_.emplace(load.adapter, std::move(load));
      results.push_back(std::move(loaded_.extract(next).mapped()));
      loading_.pop_front();
    }
    return results;
  }

  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override { return engine_.merge_footprint(adapter); }
  void start_merge(AdapterId adapter, std::span<const PageId> pages) override {
    merging_.push_back(adapter);
    engine_.start_merge(adapter, pages);
  }
  std::vector<MergeResult> take_finished_merges() override {
    std::vector<MergeResult> results;
    while (!merging_.empty() && rng_.below(4) == 0) {
      const AdapterId next = merging_.front();
      while (!merged_.contains(next)) {
        for (MergeResult& merge : engine_.take_finished_merges()) merged_.emplace(merge.adapter, std::move(merge));
        std::this_thread::yield();
      }
      results.push_back(std::move(merged_.extract(next).mapped()));
      merging_.pop_front();
    }
    return results;
  }
  void drop_merge(AdapterId adapter) override {
    engine_.drop_merge(adapter);
    std::erase(merging_, adapter);
    merged_.erase(adapter);
  }

 private:
  Engine& engine_;
  Rng rng_;
  Micros now_ = 0;
  std::deque<AdapterId> loading_, merging_;  // in the order of their start
  std::map<AdapterId, LoadResult> loaded_;   // ended, and not yet told
  std::map<AdapterId, MergeResult> merged_;
};

}  // namespace lk::testing
