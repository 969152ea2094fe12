// SPDX-License-Identifier: Apache-2.0
// A machine with a roofline for a cost model and a clock that only steps move, and a closed loop of requests on it
// under a merge chooser. With Noise what the chooser sees of the machine is as bad as on a shared one: Outcome::seconds
// is what the steps cost without it, so that choosers are compared by their decisions, exactly.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <numbers>
#include <set>

#include "lk/base/rng.h"
#include "lk/merging/controller.h"
#include "lk/sched/scheduler.h"
#include "lk/sim/merging.h"

namespace lk {

// Times in us. One product of n rows: reading the weights once, or the arithmetic.
struct Machine {
  double read = 10'000, row = 1'000;  // ridge at 10 rows
  double lora_factor = 1.5;           // low-rank work is less efficient than products
  double build_factor = 1;            // and so is building
};

// What measured times suffer from on a shared machine.
struct Noise {
  double sigma = 0;                         // log-normal, apart for the products and the low-rank part of each step
  double outliers = 0, outlier_factor = 3;  // share of steps that take so much longer
  double drift = 1, drift_s = 60;  // the machine becomes slower by this factor and recovers, in so many seconds
  double attention = 0;  // us per row and token of its context: part of a step, but nothing that a chooser is told
};

class SimExecutor : public Executor {
 public:
  SimExecutor(const Machine& machine, std::map<AdapterId, double> costs, const Noise& noise = {}, uint64_t seed = 0)
      : machine_(machine), costs_(std::move(costs)), noise_(noise), rng_(seed) {}
  // Of all steps and builds, without noise.
  double true_seconds() const { return true_us_ * 1e-6; }

  Micros now() const override { return static_cast<Micros>(time_); }
  int64_t footprint(AdapterId) const override { return 2; }
  void evicted(AdapterId) override {}
  void start_load(AdapterId adapter, std::span<const PageId>) override { loads_.push_back({adapter, Status()}); }
  std::vector<LoadResult> take_finished_loads(bool) override { return std::exchange(loads_, {}); }
  StepTimes last_step_times() const override { return times_; }

  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override {
    const double cost = costs_.at(adapter);
    if (cost == 0) return failed_precondition("nothing to merge");
    return MergeFootprint{.num_pages = 2 * merge_pages, .relative_cost = cost, .build_cost_rows = cost * 500};
  }
  void start_merge(AdapterId adapter, std::span<const PageId> pages) override {
    EXPECT_EQ(static_cast<int64_t>(pages.size()), 2 * merge_pages);
    EXPECT_TRUE(building_.emplace(adapter, build_work(adapter)).second);
  }
  std::vector<MergeResult> take_finished_merges() override {
    std::vector<MergeResult> results;
    for (auto it = building_.begin(); it != building_.end();) {
      if (it->second > 0) {
        ++it;
        continue;
      }
      MergeResult result{.adapter = it->first,
                         .build_time = static_cast<Micros>(2 * build_work(it->first)),
                         .engine_time = static_cast<Micros>(build_work(it->first) * slowness()),
                         .build_cost_rows = costs_.at(it->first) * 500};
      if (refused.contains(it->first))
        result.status = failed_precondition("rounding loses too much");
      else if (unreadable > 0 && unreadable-- > 0)
        result.status = data_loss("the file could not be read");
      else
        built_.insert(it->first);
      results.push_back(result);
      it = building_.erase(it);
    }
    return results;
  }
  void drop_merge(AdapterId adapter) override {
    building_.erase(adapter);
    built_.erase(adapter);
  }
  std::span<ItemResult> execute(const StepPlan& plan) override {
    EXPECT_TRUE(plan.merged == kBaseModel || built_.contains(plan.merged))
        << "step merged by weights that are not there";
    std::map<AdapterId, int64_t> rows;
    for (const StepItem& item : plan.items) rows[item.request->adapter] += item.end - item.begin;
    double hot = 0, others = 0, lora = 0, attention = 0;
    for (const StepItem& item : plan.items)
      attention += noise_.attention * static_cast<double>((item.end - item.begin) * (item.begin + item.end)) / 2;
    for (const auto& [adapter, n] : rows) {
      const auto count = static_cast<double>(n);
      (adapter == plan.merged && adapter != kBaseModel ? hot : others) += count;
      if (adapter == kBaseModel || adapter == plan.merged) continue;
      lora += machine_.lora_factor * costs_.at(adapter) * std::max(machine_.read, machine_.row * count);
    }
    double plain = product(hot) + product(others) + attention, stolen = 0;
    // A builder takes a third of the machine while it has work.
    if (!building_.empty() && !stuck) {
      const double done = std::min(building_.begin()->second, (plain + lora) / 2);
      building_.begin()->second -= done;
      stolen = done / (plain + lora);
    }
    true_us_ += (plain + lora) * (1 + stolen);
    const double slower = slowness() * (1 + stolen) * (rng_.uniform() < noise_.outliers ? noise_.outlier_factor : 1);
    plain *= slower * std::exp(noise_.sigma * rng_.normal());
    lora *= slower * std::exp(noise_.sigma * rng_.normal());
    times_ = {.total = static_cast<Micros>(plain + lora), .lora = static_cast<Micros>(lora)};
    time_ += plain + lora;
    for (const auto& [adapter, n] : rows) last_step_[adapter] = now();
    steps.push_back({plan.merged, rows});
    results_.assign(plan.items.size(), {.token = {.token = 7}});
    return results_;
  }
  void finish_builds() {
    for (auto& [adapter, left] : building_) left = 0;
  }
  void wait_until(Micros time) { time_ = std::max(time_, static_cast<double>(time)); }

  struct Step {
    AdapterId merged;
    std::map<AdapterId, int64_t> rows;
  };
  std::vector<Step> steps;
  std::set<AdapterId> refused;
  int unreadable = 0;  // so many builds fail for a reason that passes
  bool stuck = false;  // builds make no progress
  int64_t merge_pages = 50;

 private:
  double product(double n) const { return n == 0 ? 0 : std::max(machine_.read, machine_.row * n); }
  double slowness() const {
    return noise_.drift == 1 ? 1
                             : std::exp(std::log(noise_.drift) *
                                        (0.5 - 0.5 * std::cos(2 * std::numbers::pi * time_ * 1e-6 / noise_.drift_s)));
  }
  double build_work(AdapterId adapter) const {
    return machine_.build_factor * (2 * machine_.read + costs_.at(adapter) * 500 * machine_.row);
  }
  const Machine machine_;
  const std::map<AdapterId, double> costs_;
  const Noise noise_;
  Rng rng_;
  double time_ = 1, true_us_ = 0;
  StepTimes times_;
  std::vector<ItemResult> results_;
  std::vector<LoadResult> loads_;
  std::map<AdapterId, double> building_;
  std::set<AdapterId> built_;
  std::map<AdapterId, Micros> last_step_;
};

struct Workload {
  int64_t requests = 400, prompt = 8, output = 64, max_running = 32,
          phase = 0;  // phase > 0: the hot adapter changes after so many
  double share = 0.5, cost = 0.2;
  int64_t adapters = 8;
  QueueKind queue = QueueKind::kFcfs;
};

struct Outcome {
  double seconds = 0, longest_gap = 0;  // gap: between two steps of one request
  MergeStats stats;
};

inline std::unique_ptr<MergeController> make_merging(const std::string& chooser, UnifiedPool& pool,
                                                     Executor& executor) {
  std::unique_ptr<MergeChooser> made = sim::make_chooser(sim::parse_merging(chooser).value());
  return made ? std::make_unique<MergeController>(std::move(made), pool, executor) : nullptr;
}

inline Outcome run(const Workload& w, const std::string& chooser, uint64_t seed, const Machine& machine = {},
                   const Noise& noise = {}) {
  std::map<AdapterId, double> costs;
  for (AdapterId a = 0; a < w.adapters; ++a) costs[a] = w.cost;
  SimExecutor executor(machine, costs, noise, seed);
  UnifiedPool pool(1600);
  std::unique_ptr<MergeController> merging = make_merging(chooser, pool, executor);
  Scheduler scheduler(
      {.max_step_tokens = 512, .max_running = w.max_running, .prefix_cache = false, .queue = {.kind = w.queue}}, pool,
      executor, merging.get());
  for (AdapterId a = 0; merging && a < w.adapters; ++a) merging->allow(a);
  Rng rng(seed);
  std::map<RequestId, Micros> last;
  Outcome outcome;
  int64_t submitted = 0, finished = 0;
  while (finished < w.requests) {
    // A closed loop with as many waiting as running.
    while (submitted < w.requests && submitted - finished < 2 * w.max_running) {
      const AdapterId hot = w.phase > 0 ? static_cast<AdapterId>(submitted / w.phase % w.adapters) : 0;
      Request request{.id = submitted++,
                      .adapter = rng.uniform() < w.share
                                     ? hot
                                     : static_cast<AdapterId>(rng.below(static_cast<uint64_t>(w.adapters))),
                      .prompt = std::vector<int32_t>(static_cast<size_t>(w.prompt), 1),
                      .max_tokens = 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * w.output)))};
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
  outcome.seconds = executor.true_seconds();
  if (merging) outcome.stats = merging->stats();
  return outcome;
}

}  // namespace lk
