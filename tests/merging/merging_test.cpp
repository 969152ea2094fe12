// SPDX-License-Identifier: Apache-2.0
// Merge choosers, controller and scheduler on the virtual machine of machine.h: every time below is virtual, so
// policies are compared exactly.
#include "machine.h"

namespace lk {
namespace {

// Products and low-rank parts apart by 15 %, steps that take three times as long, a machine that slows to half and
// recovers.
constexpr Noise kNoise{.sigma = 0.15, .outliers = 0.02, .drift = 2, .drift_s = 40};

struct Compared {
  double never = 0, always = 0;
  Outcome cost;
  double gain() const { return std::min(never, always) / cost.seconds; }
};
Compared compare(const Workload& w, uint64_t seed, const Machine& machine = {}, const Noise& noise = {}) {
  return {run(w, "never", seed, machine, noise).seconds, run(w, "always", seed, machine, noise).seconds,
          run(w, "cost", seed, machine, noise)};
}
std::ostream& operator<<(std::ostream& out, const Compared& c) {
  return out << "never " << c.never << " always " << c.always << " cost " << c.cost.seconds << " s, builds "
             << c.cost.stats.num_builds << ", merged steps " << c.cost.stats.num_merged_steps << ", exclusive "
             << c.cost.stats.num_exclusive_steps;
}

// The figure that the cost chooser is for: never more than 2 % behind the better of the two pure policies, whatever the
// share, the size of the deltas and the kind of work.
void never_worse(uint64_t seed, const Machine& machine, const Noise& noise) {
  for (const auto& [queue, prefill] : {std::pair(QueueKind::kFcfs, true),
                                       {QueueKind::kFcfs, false},
                                       {QueueKind::kVtc, true},
                                       {QueueKind::kVtc, false}}) {
    for (const double share : {0.3, 0.5, 0.7, 0.9, 1.0}) {
      for (const double cost : {0.01, 0.1, 0.4}) {
        for (const int64_t max_running : {4, 32}) {
          const Workload w{.requests = prefill ? 400 : 200,
                           .prompt = prefill ? 256 : 8,
                           .output = prefill ? 4 : 64,
                           .max_running = max_running,
                           .share = share,
                           .cost = cost,
                           .queue = queue};
          const Compared compared = compare(w, seed, machine, noise);
          EXPECT_GE(compared.gain(), 0.98)
              << to_string(queue) << (prefill ? " prefill" : " decode") << " share " << share << " cost " << cost
              << " running " << max_running << " seed " << seed << ": " << compared;
        }
      }
    }
  }
}

TEST(MergeCost, NeverWorseThanTheBetterPurePolicy) {
  for (const uint64_t seed : {1, 2}) never_worse(seed, {}, {});
  never_worse(3, {.read = 40'000}, {});
}

TEST(MergeCost, NeverWorseOnANoisyMachine) {
  for (const uint64_t seed : {1, 2, 3}) never_worse(seed, {}, kNoise);
}

// Where no fixed mode is right: a few decoding requests, most of them of one adapter. A step with somebody else in it
// waits for a second read of the weights when it runs merged, a step without does not.
TEST(MergeCost, BetterThanBothWhereTheBestModeChangesWithTheStep) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const Noise& noise : {Noise{}, kNoise}) {
      const Compared compared =
          compare({.requests = 200, .max_running = 2, .share = 0.8, .cost = 0.2}, seed, {}, noise);
      EXPECT_GE(compared.gain(), 1.1) << "seed " << seed << " noise " << noise.sigma << ": " << compared;
    }
  }
}

// And where two adapters take turns at being the hotter one, faster than a build pays for itself: `always` builds at
// each turn.
TEST(MergeCost, BetterThanBothWhereTheHotAdapterKeepsChanging) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const Noise& noise : {Noise{}, kNoise}) {
      const Compared compared = compare({.requests = 300, .phase = 20, .share = 0.9, .cost = 0.4, .adapters = 2}, seed,
                                        {.build_factor = 3}, noise);
      EXPECT_GE(compared.gain(), 1.1) << "seed " << seed << " noise " << noise.sigma << ": " << compared;
    }
  }
}

TEST(MergeCost, NobodyWaitsLongerThanTheBound) {
  for (const double share : {0.5, 0.9}) {
    const Workload w{.requests = 300, .share = share, .cost = 0.4};
    const Outcome outcome = run(w, "cost", 3);
    // 250 ms without a step, and the step that ends the wait.
    EXPECT_LE(outcome.longest_gap, 0.25 + 0.6) << share;
    EXPECT_TRUE(share < 0.9 || outcome.stats.num_exclusive_steps > 0) << "nobody was kept waiting";
  }
}

TEST(MergeCost, LeavesSmallDeltasAndShortRunsAlone) {
  EXPECT_EQ(run({.requests = 50, .share = 0.5, .cost = 0.001}, "cost", 1).stats.num_builds, 0);
  EXPECT_EQ(run({.requests = 20, .prompt = 4, .output = 2, .share = 1, .cost = 0.2}, "cost", 1).stats.num_builds, 0);
}

TEST(MergeCost, FollowsTheHotAdapterWhenItChanges) {
  const Workload w{
      .requests = 1200, .prompt = 256, .output = 4, .phase = 300, .share = 0.9, .cost = 0.3, .adapters = 4};
  const Outcome outcome = run(w, "cost", 5);
  EXPECT_GE(outcome.stats.num_builds, 4);
  EXPECT_LE(outcome.stats.num_builds, 8) << "two equals take turns";
  EXPECT_LT(outcome.seconds, 0.9 * run(w, "never", 5).seconds);
}

// Fig. 10 of the paper in small, on the artifact's own machine: an unmerged step takes 27 ms, a merged one 15, whatever
// is in it.
TEST(MergeDlora, IsNotFarFromTheBetterPurePolicyAtAnySkew) {
  for (const double share : {0.2, 0.5, 0.8, 0.95}) {
    const Machine artifact{.read = 15'000, .row = 1, .lora_factor = 1};
    const Workload w{.requests = 400, .max_running = 16, .share = share, .cost = 0.1, .adapters = 8};
    const double never = run(w, "never", 2, artifact).seconds, exclusive = run(w, "exclusive", 2, artifact).seconds;
    const Outcome dlora = run(w, "dlora", 2, artifact);
    EXPECT_LE(dlora.seconds, 1.15 * std::min(never, exclusive))
        << "share " << share << " never " << never << " exclusive " << exclusive;
    EXPECT_TRUE(share < 0.9 || dlora.stats.num_exclusive_steps > 0);
  }
}

MergeView view_of(std::vector<AdapterId> queue, AdapterId built, int64_t max_running) {
  MergeView view{.max_running = max_running, .queue = std::move(queue), .built = built};
  for (AdapterId adapter : std::set<AdapterId>(view.queue.begin(), view.queue.end()))
    view.candidates.push_back(
        {.adapter = adapter, .allowed = true, .requests = std::count(view.queue.begin(), view.queue.end(), adapter)});
  return view;
}

// A lone request behind a busy adapter waits until it has got 10,000 credits, and no longer.
TEST(MergeDlora, CreditEndsStarvationWithinItsBound) {
  auto chooser = make_dlora_chooser();
  std::vector<AdapterId> queue(17, 0);
  queue[0] = 1;  // the oldest request is the other's
  const MergeView view = view_of(queue, 0, 16);
  int waited = 0;
  for (; waited < 200000; ++waited) {
    const MergePlan plan = chooser->plan(view);
    if (plan.exclusive != 0) {
      if (!plan.first.empty()) {
        EXPECT_EQ(plan.first.front(), 1);
        break;
      }
      FAIL() << "left merged mode for another reason at step " << waited;
    }
  }
  // Each merged step gives the displaced request 1 / (0.556 x 16) credits.
  EXPECT_NEAR(waited, 10000 * (15.0 / 27.0) * 16, 2);
}

TEST(MergeDlora, EntersWhenTheBatchIsFullAndLeavesBelowTheLowerThreshold) {
  auto chooser = make_dlora_chooser();
  std::vector<AdapterId> queue(8, 0);
  queue.insert(queue.end(), 8, 1);
  EXPECT_EQ(chooser->plan(view_of(queue, kBaseModel, 16)).build, kBaseModel) << "half of the batch is not enough";
  queue.insert(queue.end(), 8, 0);
  EXPECT_EQ(chooser->plan(view_of(queue, kBaseModel, 16)).build, 0) << "16 requests for 16 places";
  EXPECT_EQ(chooser->plan(view_of(queue, 0, 16)).exclusive, 0);
  queue.resize(9);  // 8 of 9
  EXPECT_EQ(chooser->plan(view_of(queue, 0, 16)).exclusive, 0);
  queue.insert(queue.end(), 7, 1);  // 8 of 16 < 0.556
  EXPECT_EQ(chooser->plan(view_of(queue, 0, 16)).exclusive, kBaseModel);
}

struct Served {
  SimExecutor executor;
  UnifiedPool pool;
  std::unique_ptr<MergeController> merging;
  Scheduler scheduler;
  RequestId next = 0;
  Served(int64_t pages, double cost, const std::string& chooser)
      : executor({}, {{0, cost}, {1, cost}, {2, 0}}),
        pool(pages),
        merging(make_merging(chooser, pool, executor)),
        scheduler({.max_step_tokens = 512, .prefix_cache = false}, pool, executor, merging.get()) {}
  void submit(AdapterId adapter, int64_t prompt, int64_t output) {
    Request request{.id = next++,
                    .adapter = adapter,
                    .prompt = std::vector<int32_t>(static_cast<size_t>(prompt), 1),
                    .max_tokens = output};
    ASSERT_TRUE(scheduler.submit(std::move(request)).ok());
  }
  void run(int steps) {
    for (; steps != 0 && scheduler.has_work(); --steps) {
      (void)scheduler.step();
      pool.check_integrity();
    }
  }
};

TEST(MergeController, OnlyAllowedAdaptersAreMerged) {
  Served s(1000, 0.3, "always");
  for (AdapterId adapter : {0, 1, 2}) s.submit(adapter, 20, 200);
  s.run(100);
  EXPECT_EQ(s.merging->stats().num_builds, 0) << "exact is the default";
  for (AdapterId adapter : {1, 2}) s.merging->allow(adapter);
  s.run(-1);
  EXPECT_GT(s.merging->stats().num_merged_steps, 0);
  for (const SimExecutor::Step& step : s.executor.steps) EXPECT_TRUE(step.merged == kBaseModel || step.merged == 1);
}

TEST(MergeController, RefusedMergesAreNotTriedAgain) {
  Served s(1000, 0.3, "always");
  s.executor.refused = {0};
  s.merging->allow(0);
  for (int i = 0; i < 3; ++i) s.submit(0, 20, 100);
  s.run(-1);
  EXPECT_EQ(s.merging->stats().num_builds, 1);
  EXPECT_EQ(s.merging->stats().num_refused, 1);
  EXPECT_EQ(s.merging->stats().num_merged_steps, 0);
  EXPECT_EQ(s.pool.num_merged(), 0);
}

// A file that cannot be read now and then says nothing about the next time.
TEST(MergeController, MergesThatFailForAPassingReasonAreTriedAgain) {
  Served s(1000, 0.3, "always");
  s.executor.unreadable = 3;
  s.merging->allow(0);
  for (int i = 0; i < 3; ++i) s.submit(0, 20, 400);
  s.run(-1);
  EXPECT_EQ(s.merging->stats().num_failed, 3);
  EXPECT_EQ(s.merging->stats().num_builds, 4);
  EXPECT_EQ(s.merging->stats().num_refused, 0);
  EXPECT_GT(s.merging->stats().num_merged_steps, 0);
  EXPECT_EQ(s.merging->stats().merged, 0);
}

// Merged pages go before anybody loses work.
TEST(MergeController, PressureTakesMergedPagesBeforePreempting) {
  Served s(210, 0.3, "always");
  s.merging->allow(0);
  s.submit(0, 16, 1000);
  s.run(40);
  EXPECT_EQ(s.pool.num_merged(), 100);
  EXPECT_GT(s.merging->stats().num_merged_steps, 0);
  for (int i = 0; i < 7; ++i) s.submit(i % 2, 16, 350);  // 8 x 16 pages, up to 161 in all
  s.run(-1);
  EXPECT_GT(s.merging->stats().num_given_back, 0);
  EXPECT_EQ(s.scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(s.pool.num_merged() % 100, 0);
}

// Builds what it is told to, whatever there is.
class ToldChooser : public MergeChooser {
 public:
  explicit ToldChooser(AdapterId& build) : build_(build) {}
  MergePlan plan(const MergeView& view) override { return {.build = view.built == build_ ? kBaseModel : build_}; }
  bool merged(const StepMix&, AdapterId) override { return true; }
  const char* name() const override { return "told"; }

 private:
  AdapterId& build_;
};

TEST(MergeController, WhatDoesNotFitTakesNothingFromWhatIsBuilt) {
  UnifiedPool pool(420);
  SimExecutor executor({}, {{0, 0.3}, {1, 0.3}});
  AdapterId build = 0;
  MergeController merging(std::make_unique<ToldChooser>(build), pool, executor);
  for (AdapterId adapter : {0, 1}) merging.allow(adapter);
  std::vector<MergeGate::Queued> queue{{.adapter = 0}};
  const auto plan = [&](Micros now) { (void)merging.plan(queue, 8, now); };
  plan(1);
  executor.finish_builds();
  build = kBaseModel;
  plan(2);
  ASSERT_EQ(merging.stats().merged, 0);
  std::vector<PageId> held;
  while (held.size() < 315) held.push_back(*pool.alloc_kv());
  // 5 pages are free, and adapter 0 would give 100.
  executor.merge_pages = 60;  // 120 pages of adapter 1: more than half of the pool with the other's
  queue.push_back({.adapter = 1});
  build = 1;
  plan(3);
  EXPECT_EQ(merging.stats().merged, 0) << "nothing was dropped for what does not fit";
  EXPECT_EQ(merging.stats().num_builds, 1);
  EXPECT_EQ(pool.num_merged(), 100);
  for (int i = 0; i < 20; ++i) pool.release_kv(held.back()), held.pop_back();
  plan(2'000'000);  // the pause after a build that did not fit is over
  EXPECT_EQ(merging.stats().num_builds, 2) << "now it fits in its place";
  EXPECT_EQ(merging.stats().merged, kBaseModel);
  EXPECT_EQ(pool.num_merged(), 120);
  for (const PageId page : held) pool.release_kv(page);
}

TEST(MergeController, DroppingAnAdapterDropsItsMergedWeights) {
  Served s(1000, 0.3, "always");
  s.merging->allow(0);
  s.submit(0, 16, 100);
  s.run(-1);
  EXPECT_EQ(s.merging->stats().merged, 0);
  EXPECT_TRUE(s.scheduler.drop_adapter(0).has_value());
  EXPECT_EQ(s.merging->stats().merged, kBaseModel);
  EXPECT_EQ(s.pool.num_free(), s.pool.num_pages());
  s.pool.check_integrity();
}

TEST(MergeController, ABuildThatNeverEndsBlocksNobody) {
  Served s(1000, 0.3, "always");
  s.executor.stuck = true;
  s.merging->allow(0);
  for (AdapterId adapter : {0, 1}) s.submit(adapter, 16, 50);
  s.run(-1);
  EXPECT_EQ(s.merging->stats().num_merged_steps, 0);
  EXPECT_FALSE(s.scheduler.has_work());
}

}  // namespace
}  // namespace lk
