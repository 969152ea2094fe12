// SPDX-License-Identifier: Apache-2.0
// Steps of many decoding sequences allocate nothing where adapters may be merged either, whoever chooses.
#include <gtest/gtest.h>

#include "lk/merging/controller.h"
#include "lk/sched/scheduler.h"
#include "lk/sim/merging.h"
#include "testing/counting_allocator.h"

namespace lk {
namespace {

// Gives everybody the same token. Merging saves a fifth of a step; a build is over before the next one.
class TrivialExecutor : public Executor {
 public:
  Micros now() const override { return now_; }
  int64_t footprint(AdapterId) const override { return 1; }
  void start_load(AdapterId adapter, std::span<const PageId>) override { loaded_.push_back({adapter, Status()}); }
  void evicted(AdapterId) override {}
  std::vector<LoadResult> take_finished_loads(bool) override { return std::exchange(loaded_, {}); }
  std::span<ItemResult> execute(const StepPlan& plan) override {
    const bool merged = plan.merged != kBaseModel;
    times_ = {.total = merged ? 8000 : 10'000, .lora = merged ? 1000 : 3000};
    now_ += times_.total;
    results_.assign(plan.items.size(), {.token = {.token = 5}});
    return results_;
  }
  StepTimes last_step_times() const override { return times_; }
  Result<MergeFootprint> merge_footprint(AdapterId) const override {
    return MergeFootprint{.num_pages = 64, .relative_cost = 0.2, .build_cost_rows = 8};
  }
  void start_merge(AdapterId adapter, std::span<const PageId>) override {
    merged_.push_back({.adapter = adapter, .build_time = 5000, .engine_time = 5000, .build_cost_rows = 8});
  }
  std::vector<MergeResult> take_finished_merges() override { return std::exchange(merged_, {}); }

 private:
  Micros now_ = 0;
  StepTimes times_;
  std::vector<LoadResult> loaded_;
  std::vector<MergeResult> merged_;
  std::vector<ItemResult> results_;
};

struct Steady {
  int64_t allocations = 0;
  MergeStats stats;
};

// Of 64 steps in which everybody decodes; a part of the requests is of the base model.
Steady run(sim::Merging chooser, int64_t hot_share) {
  constexpr int64_t kSequences = 64, kPages = 4096;
  TrivialExecutor executor;
  UnifiedPool pool(kPages);
  MergeController merging(sim::make_chooser(chooser), pool, executor);
  for (AdapterId adapter = 0; adapter < 4; ++adapter) merging.allow(adapter);
  Scheduler scheduler({.max_step_tokens = 4096, .max_running = kSequences, .prefix_cache = false, .preempt_gap = 0},
                      pool, executor, &merging);
  for (RequestId id = 0; id < kSequences; ++id) {
    Request request{.id = id,
                    .adapter = id % 8 < hot_share ? 0 : static_cast<AdapterId>(id % 5) - 1,
                    .tenant = id % 7,
                    .max_tokens = 800};
    for (int64_t i = 0; i < 20; ++i) request.prompt.push_back(static_cast<int32_t>(id * 1000 + i));
    EXPECT_TRUE(scheduler.submit(std::move(request)).ok());
  }
  for (int step = 0; step < 500; ++step) (void)scheduler.step();
  const testing::AllocationCounter counter;
  for (int step = 0; step < 64; ++step) (void)scheduler.step();
  const Steady steady{counter.count(), merging.stats()};
  EXPECT_EQ(scheduler.requests().size(), static_cast<size_t>(kSequences)) << "nobody has ended";
  return steady;
}

TEST(MergingAllocation, StepsOfManyDecodingSequencesAllocateNothing) {
  for (const sim::Merging chooser :
       {sim::Merging::kAlways, sim::Merging::kExclusive, sim::Merging::kDlora, sim::Merging::kCost})
    for (const int64_t hot_share : {2, 6, 8}) {
      const Steady steady = run(chooser, hot_share);
      EXPECT_EQ(steady.allocations, 0) << sim::to_string(chooser) << " " << hot_share;
      EXPECT_TRUE(hot_share < 8 || steady.stats.num_merged_steps > 0) << sim::to_string(chooser);
    }
}

}  // namespace
}  // namespace lk
