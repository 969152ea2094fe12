// SPDX-License-Identifier: Apache-2.0
// Merge choosers, controller and scheduler over an executor with a roofline for a cost model and a clock that only steps move: every time
// below is virtual, so policies are compared exactly.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "lk/base/rng.h"
#include "lk/sched/scheduler.h"

namespace lk {
namespace {

// Times in us. One product of n rows: reading the weights once, or the arithmetic.
struct Machine {
  double read = 10'000, row = 1'000;  // ridge at 10 rows
  double lora_factor = 1.5;           // low-rank work is less efficient than products
};

class SimExecutor : public Executor {
 public:
  SimExecutor(const Machine& machine, std::map<AdapterId, double> costs) : machine_(machine), costs_(std::move(costs)) {}

  Micros now() const override { return static_cast<Micros>(time_); }
  AdapterFootprint footprint(AdapterId) const override { return {.num_pages = 2, .run_length = 0}; }
  void start_load(AdapterId adapter, const AdapterPages&) override { loads_.push_back({adapter, Status()}); }
  std::vector<LoadResult> take_finished_loads(bool) override { return std::exchange(loads_, {}); }
  StepTimes last_step_times() const override { return times_; }

  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override {
    const double cost = costs_.at(adapter);
    if (cost == 0) return failed_precondition("nothing to merge");
    return MergeFootprint{.run_lengths = {merge_pages, merge_pages}, .relative_cost = cost, .build_cost_rows = cost * 500};
  }
  void start_merge(AdapterId adapter, const MergePages& pages) override {
    EXPECT_EQ(pages.run_begin.size(), 2u);
    EXPECT_TRUE(building_.emplace(adapter, build_work(adapter)).second);
  }
  std::vector<MergeResult> take_finished_merges() override {
    std::vector<MergeResult> results;
    for (auto it = building_.begin(); it != building_.end();) {
      if (it->second > 0) {
        ++it;
        continue;
      }
      MergeResult result{.adapter = it->first, .build_time = static_cast<Micros>(2 * build_work(it->first)),
                         .engine_time = static_cast<Micros>(build_work(it->first)), .build_cost_rows = costs_.at(it->first) * 500};
      if (refused.contains(it->first)) result.status = failed_precondition("rounding loses too much");
      else built_.insert(it->first);
      results.push_back(result);
      it = building_.erase(it);
    }
    return results;
  }
  void drop_merge(AdapterId adapter) override {
    building_.erase(adapter);
    built_.erase(adapter);
  }
  std::vector<ItemResult> execute(const StepPlan& plan) override {
    EXPECT_TRUE(plan.merged == kBaseModel || built_.contains(plan.merged)) << "step merged by weights that are not there";
    std::map<AdapterId, int64_t> rows;
    for (const StepItem& item : plan.items) rows[item.request->adapter] += item.end - item.begin;
    double hot = 0, others = 0, lora = 0;
    for (const auto& [adapter, n] : rows) {
      const auto count = static_cast<double>(n);
      (adapter == plan.merged && adapter != kBaseModel ? hot : others) += count;
      if (adapter == kBaseModel || adapter == plan.merged) continue;
      lora += machine_.lora_factor * costs_.at(adapter) * std::max(machine_.read, machine_.row * count);
    }
    times_ = {.total = static_cast<Micros>(product(hot) + product(others) + lora), .lora = static_cast<Micros>(lora)};
    double elapsed = static_cast<double>(times_.total);
    // A builder takes a third of the machine while it has work.
    if (!building_.empty() && !stuck) {
      const double done = std::min(building_.begin()->second, elapsed / 2);
      building_.begin()->second -= done;
      elapsed += done;
      times_.total = static_cast<Micros>(elapsed);
    }
    time_ += elapsed;
    for (const auto& [adapter, n] : rows) last_step_[adapter] = now();
    steps.push_back({plan.merged, rows});
    std::vector<ItemResult> results(plan.items.size());
    for (ItemResult& result : results) result.token.token = 7;
    return results;
  }
  void wait_until(Micros time) { time_ = std::max(time_, static_cast<double>(time)); }

  struct Step {
    AdapterId merged;
    std::map<AdapterId, int64_t> rows;
  };
  std::vector<Step> steps;
  std::set<AdapterId> refused;
  bool stuck = false;  // builds make no progress
  int64_t merge_pages = 50;

 private:
  double product(double n) const { return n == 0 ? 0 : std::max(machine_.read, machine_.row * n); }
  double build_work(AdapterId adapter) const { return 2 * machine_.read + costs_.at(adapter) * 500 * machine_.row; }
  const Machine machine_;
  const std::map<AdapterId, double> costs_;
  double time_ = 1;
  StepTimes times_;
  std::vector<LoadResult> loads_;
  std::map<AdapterId, double> building_;
  std::set<AdapterId> built_;
  std::map<AdapterId, Micros> last_step_;
};

struct Workload {
  int64_t requests = 400, prompt = 8, output = 64, max_running = 32, phase = 0;  // phase > 0: the hot adapter changes after so many
  double share = 0.5, cost = 0.2;
  int64_t adapters = 8;
  QueueKind queue = QueueKind::kFcfs;
};

struct Outcome {
  double seconds = 0, longest_gap = 0;  // gap: between two steps of one request
  MergeStats stats;
};

Outcome run(const Workload& w, const std::string& chooser, uint64_t seed, const Machine& machine = {}) {
  std::map<AdapterId, double> costs;
  for (AdapterId a = 0; a < w.adapters; ++a) costs[a] = w.cost;
  SimExecutor executor(machine, costs);
  UnifiedPool pool(1600);
  Scheduler scheduler({.max_step_tokens = 512, .max_running = w.max_running, .prefix_cache = false, .queue = {.kind = w.queue}}, pool, executor);
  auto made = make_merge_chooser(chooser);
  EXPECT_TRUE(made) << chooser;
  scheduler.enable_merging({}, std::move(made));
  for (AdapterId a = 0; a < w.adapters; ++a) scheduler.merging()->set_allowed(a, true);
  Rng rng(seed);
  std::map<RequestId, Micros> last;
  Outcome outcome;
  int64_t submitted = 0, finished = 0;
  while (finished < w.requests) {
    // A closed loop with as many waiting as running.
    while (submitted < w.requests && submitted - finished < 2 * w.max_running) {
      const AdapterId hot = w.phase > 0 ? static_cast<AdapterId>(submitted / w.phase % w.adapters) : 0;
      Request request{.id = submitted++, .adapter = rng.uniform() < w.share ? hot : static_cast<AdapterId>(rng.below(static_cast<uint64_t>(w.adapters))),
                      .prompt = std::vector<int32_t>(static_cast<size_t>(w.prompt), 1), .max_tokens = 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * w.output)))};
      EXPECT_TRUE(scheduler.submit(std::move(request)).ok());
    }
    for (const RequestEvent& event : scheduler.step()) {
      if (event.has_token || event.started) {
        if (const auto it = last.find(event.id); it != last.end())
          outcome.longest_gap = std::max(outcome.longest_gap, static_cast<double>(executor.now() - it->second) * 1e-6);
        last[event.id] = executor.now();
      }
      if (event.finish != FinishReason::kNone) ++finished, last.erase(event.id);
    }
    if (executor.steps.size() % 32 == 0) pool.check_integrity();
  }
  outcome.seconds = static_cast<double>(executor.now()) * 1e-6;
  outcome.stats = scheduler.merging()->stats();
  return outcome;
}

// The figure that the cost chooser is for: never more than 2 % behind the better of the two pure policies, whatever the share, the size of the
// deltas and the kind of work, and clearly ahead of both where the best choice changes with the step.
TEST(MergeCost, NeverWorseThanTheBetterPurePolicyAndSomewhereBetterThanBoth) {
  double best_gain = 0;
  for (const auto& [queue, prefill] : {std::pair(QueueKind::kFcfs, true), {QueueKind::kFcfs, false}, {QueueKind::kVtc, true}, {QueueKind::kVtc, false}}) {
    for (const double share : {0.3, 0.5, 0.7, 0.9, 1.0}) {
      for (const double cost : {0.01, 0.1, 0.4}) {
        for (const int64_t max_running : {4, 32}) {
          const Workload w{.requests = prefill ? 400 : 200, .prompt = prefill ? 256 : 8, .output = prefill ? 4 : 64, .max_running = max_running,
                           .share = share, .cost = cost, .queue = queue};
          const double unmerged = run(w, "never", 1).seconds, merged = run(w, "always", 1).seconds;
          const Outcome chosen = run(w, "cost", 1);
          EXPECT_LE(chosen.seconds, std::min(unmerged, merged) / 0.98)
              << to_string(queue) << (prefill ? " prefill" : " decode") << " share " << share << " cost " << cost << " running " << max_running << ": never " << unmerged
              << " always " << merged << " cost " << chosen.seconds << " s, builds " << chosen.stats.num_builds << ", merged steps "
              << chosen.stats.num_merged_steps << ", exclusive " << chosen.stats.num_exclusive_steps;
          best_gain = std::max(best_gain, std::min(unmerged, merged) / chosen.seconds);
        }
      }
    }
  }
  EXPECT_GT(best_gain, 1.1);
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
  const Workload w{.requests = 1200, .prompt = 256, .output = 4, .phase = 300, .share = 0.9, .cost = 0.3, .adapters = 4};
  const Outcome outcome = run(w, "cost", 5);
  EXPECT_GE(outcome.stats.num_builds, 4);
  EXPECT_LE(outcome.stats.num_builds, 8) << "two equals take turns";
  EXPECT_LT(outcome.seconds, 0.9 * run(w, "never", 5).seconds);
}

// Fig. 10 of the paper in small, on the artifact's own machine: an unmerged step takes 27 ms, a merged one 15, whatever is in it.
TEST(MergeDlora, IsNotFarFromTheBetterPurePolicyAtAnySkew) {
  for (const double share : {0.2, 0.5, 0.8, 0.95}) {
    const Machine artifact{.read = 15'000, .row = 1, .lora_factor = 1};
    const Workload w{.requests = 400, .max_running = 16, .share = share, .cost = 0.1, .adapters = 8};
    const double never = run(w, "never", 2, artifact).seconds, exclusive = run(w, "exclusive", 2, artifact).seconds;
    const Outcome dlora = run(w, "dlora", 2, artifact);
    EXPECT_LE(dlora.seconds, 1.15 * std::min(never, exclusive)) << "share " << share << " never " << never << " exclusive " << exclusive;
    EXPECT_TRUE(share < 0.9 || dlora.stats.num_exclusive_steps > 0);
  }
}

MergeView view_of(std::vector<AdapterId> queue, AdapterId built, int64_t max_running) {
  MergeView view{.max_running = max_running, .queue = std::move(queue), .built = built};
  for (AdapterId adapter : std::set<AdapterId>(view.queue.begin(), view.queue.end()))
    view.candidates.push_back({.adapter = adapter, .allowed = true, .requests = std::count(view.queue.begin(), view.queue.end(), adapter)});
  return view;
}

// With the shipped prices a lone request behind a busy adapter waits (10000 credits / 0.5 x 0.1125) steps, and no longer.
TEST(MergeDlora, CreditEndsStarvationWithinItsBound) {
  auto chooser = make_dlora_chooser({.credit_unit = 10});
  std::vector<AdapterId> queue(17, 0);
  queue[0] = 1;  // the oldest request is the other's
  int waited = 0;
  for (; waited < 10000; ++waited) {
    const MergePlan plan = chooser->plan(view_of(queue, 0, 16));
    if (plan.exclusive != 0) {
      if (!plan.first.empty()) {
        EXPECT_EQ(plan.first.front(), 1);
        break;
      }
      FAIL() << "left merged mode for another reason at step " << waited;
    }
  }
  // Each merged step gives the displaced request 1 / (0.556 x 16) credits; it needs 10.
  EXPECT_NEAR(waited, 10 * (15.0 / 27.0) * 16, 2);
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
  Scheduler scheduler;
  RequestId next = 0;
  Served(int64_t pages, double cost, const std::string& chooser)
      : executor({}, {{0, cost}, {1, cost}, {2, 0}}), pool(pages), scheduler({.max_step_tokens = 512, .prefix_cache = false}, pool, executor) {
    scheduler.enable_merging({}, make_merge_chooser(chooser));
  }
  void submit(AdapterId adapter, int64_t prompt, int64_t output) {
    Request request{.id = next++, .adapter = adapter, .prompt = std::vector<int32_t>(static_cast<size_t>(prompt), 1), .max_tokens = output};
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
  EXPECT_EQ(s.scheduler.merging()->stats().num_builds, 0) << "exact is the default";
  for (AdapterId adapter : {1, 2}) s.scheduler.merging()->set_allowed(adapter, true);
  s.run(-1);
  EXPECT_GT(s.scheduler.merging()->stats().num_merged_steps, 0);
  for (const SimExecutor::Step& step : s.executor.steps) EXPECT_TRUE(step.merged == kBaseModel || step.merged == 1);
}

TEST(MergeController, RefusedMergesAreNotTriedAgain) {
  Served s(1000, 0.3, "always");
  s.executor.refused = {0};
  s.scheduler.merging()->set_allowed(0, true);
  for (int i = 0; i < 3; ++i) s.submit(0, 20, 100);
  s.run(-1);
  EXPECT_EQ(s.scheduler.merging()->stats().num_builds, 1);
  EXPECT_EQ(s.scheduler.merging()->stats().num_refused, 1);
  EXPECT_EQ(s.scheduler.merging()->stats().num_merged_steps, 0);
  EXPECT_EQ(s.pool.num_merged(), 0);
}

// Merged pages go before anybody loses work.
TEST(MergeController, PressureTakesMergedPagesBeforePreempting) {
  Served s(210, 0.3, "always");
  s.scheduler.merging()->set_allowed(0, true);
  s.submit(0, 16, 1000);
  s.run(40);
  EXPECT_EQ(s.pool.num_merged(), 100);
  EXPECT_GT(s.scheduler.merging()->stats().num_merged_steps, 0);
  for (int i = 0; i < 7; ++i) s.submit(i % 2, 16, 350);  // 8 x 16 pages, up to 161 in all
  s.run(-1);
  EXPECT_GT(s.scheduler.merging()->stats().num_given_back, 0);
  EXPECT_EQ(s.scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(s.pool.num_merged() % 100, 0);
}

TEST(MergeController, DroppingAnAdapterDropsItsMergedWeights) {
  Served s(1000, 0.3, "always");
  s.scheduler.merging()->set_allowed(0, true);
  s.submit(0, 16, 100);
  s.run(-1);
  EXPECT_EQ(s.scheduler.merging()->stats().merged, 0);
  EXPECT_TRUE(s.scheduler.drop_adapter(0).has_value());
  EXPECT_EQ(s.scheduler.merging()->stats().merged, kBaseModel);
  EXPECT_EQ(s.pool.num_free(), s.pool.num_pages());
  s.pool.check_integrity();
}

TEST(MergeController, ABuildThatNeverEndsBlocksNobody) {
  Served s(1000, 0.3, "always");
  s.executor.stuck = true;
  s.scheduler.merging()->set_allowed(0, true);
  for (AdapterId adapter : {0, 1}) s.submit(adapter, 16, 50);
  s.run(-1);
  EXPECT_EQ(s.scheduler.merging()->stats().num_merged_steps, 0);
  EXPECT_FALSE(s.scheduler.has_work());
}

}  // namespace
}  // namespace lk
