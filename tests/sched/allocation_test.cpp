// SPDX-License-Identifier: Apache-2.0
// A step of many decoding sequences allocates nothing, once the scheduler and the pool have seen their like.
#include <gtest/gtest.h>

#include "lk/sched/scheduler.h"
#include "testing/counting_allocator.h"

namespace lk {
namespace {

// Takes a millisecond and gives everybody the same token.
class TrivialExecutor : public Executor {
 public:
  Micros now() const override { return now_; }
  int64_t footprint(AdapterId) const override { return 1; }
  void start_load(AdapterId adapter, std::span<const PageId>) override { loaded_.push_back({adapter, Status()}); }
  void evicted(AdapterId) override {}
  std::vector<LoadResult> take_finished_loads(bool) override { return std::exchange(loaded_, {}); }
  std::span<ItemResult> execute(const StepPlan& plan) override {
    now_ += 1000;
    results_.assign(plan.items.size(), {.token = {.token = 5}});
    return results_;
  }

 private:
  Micros now_ = 0;
  std::vector<LoadResult> loaded_;
  std::vector<ItemResult> results_;
};

int64_t allocations_of_steps(const QueueOptions& queue, bool some_wait) {
  constexpr int64_t kSequences = 128, kPages = 128 * 16;
  TrivialExecutor executor;
  UnifiedPool pool(kPages);
  Scheduler scheduler({.max_step_tokens = 4096, .max_running = kSequences, .preempt_gap = 0, .queue = queue}, pool,
                      executor);
  RequestId next = 0;
  const auto submit = [&](int64_t prompt, int64_t output) {
    Request request{
        .id = next++, .adapter = static_cast<AdapterId>(next % 4), .tenant = next % 7, .max_tokens = output};
    for (int64_t i = 0; i < prompt; ++i) request.prompt.push_back(static_cast<int32_t>(next * 1000 + i));
    EXPECT_TRUE(scheduler.submit(std::move(request)).ok());
  };
  // A generation before them fills the pool with cached pages, so that each page they go to is taken from those.
  for (int round = 0; round < 2; ++round) {
    for (int64_t i = 0; i < kSequences; ++i) submit(20 + i % 16, 200);
    while (scheduler.has_work()) (void)scheduler.step();
  }
  for (int64_t i = 0; i < kSequences; ++i) submit(20 + i % 16, 200);
  for (int step = 0; step < 20; ++step) (void)scheduler.step();
  for (int i = 0; some_wait && i < 10; ++i) submit(20, 20);
  for (int step = 0; step < 4; ++step) (void)scheduler.step();
  EXPECT_EQ(scheduler.num_running(), kSequences);
  const testing::AllocationCounter counter;
  for (int step = 0; step < 64; ++step) (void)scheduler.step();  // each sequence fills four pages
  const int64_t allocated = counter.count();
  EXPECT_EQ(scheduler.num_running(), kSequences);
  EXPECT_EQ(scheduler.stats().num_preemptions, 0);
  while (scheduler.has_work()) (void)scheduler.step();
  return allocated;
}

TEST(Allocation, StepsOfManyDecodingSequencesAllocateNothing) {
  for (const QueueKind kind : {QueueKind::kVtc, QueueKind::kFcfs, QueueKind::kDlpm})
    for (const Prediction prediction : {Prediction::kNone, Prediction::kMean, Prediction::kMaxTokens})
      EXPECT_EQ(allocations_of_steps({.kind = kind, .prediction = prediction}, false), 0) << to_string(kind);
}

TEST(Allocation, NorDoThoseWhileOthersWait) {
  for (const QueueKind kind : {QueueKind::kVtc, QueueKind::kFcfs, QueueKind::kDlpm})
    EXPECT_EQ(allocations_of_steps({.kind = kind}, true), 0) << to_string(kind);
}

TEST(Allocation, IsCounted) {
  const testing::AllocationCounter counter;
  std::vector<int> numbers(100);
  EXPECT_EQ(numbers.size(), 100u);
  EXPECT_GT(counter.count(), 0);
}

}  // namespace
}  // namespace lk
