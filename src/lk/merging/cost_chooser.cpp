// SPDX-License-Identifier: Apache-2.0
// The cost chooser: what cost_model.h has learned, put to use.
//
// Building is a ski rental problem: rent (run unmerged) until the rent paid would have bought the skis. That alone is
// never worse than twice the best choice in hindsight; the known backlog lets it buy earlier. Once something is built,
// the rent is only what another one would have saved beyond it: with a fair queue whoever was served last looks
// hottest, and what is built would be given up for each in turn.
#include <algorithm>
#include <cmath>
#include <map>

#include "lk/merging/cost_model.h"

namespace lk {
namespace {

constexpr double kBuildMargin = 1.0;    // savings wanted before building, in units of its cost: ski rental
constexpr double kBacklogWeight = 0.5;  // of savings that the known requests promise: they may end early
constexpr double kForget = 60;          // seconds; savings missed so long ago count 1/e
constexpr double kHysteresis = 0.02;    // a mode must measure better by this share, or noise would decide
// Steps of one kind before the first look at the other mode; the next comes after twice as many, and so on.
constexpr int64_t kProbeAfter = 4, kMaxProbeEvery = 1024;
constexpr double kProbeLimit = 1.3;            // never look at a mode that is expected to be slower by this factor
constexpr Micros kMaxExclusiveWait = 250'000;  // nobody is kept out of steps longer: a pause that a reader notices
constexpr double kExclusiveGain = 0.1;         // share of time per row that keeping others out must save
constexpr double kBuildsRemembered = 25;
constexpr double kSure = 2;  // deviations from even: the other mode is not worth a look

// An average that follows quickly at first.
struct Average {
  double value = 0;
  int64_t count = 0;
  void add(double x) {
    ++count;
    value += std::max(0.1, 1 / static_cast<double>(count)) * (x - value);
  }
};

class CostChooser : public MergeChooser {
 public:
  MergePlan plan(const MergeView& view) override {
    fade(view.now);
    MergePlan plan;
    double kept = 0;  // what the backlog promises to the one that would be given up
    for (const MergeCandidate& candidate : view.candidates)
      if (candidate.adapter == view.built) kept = promise(candidate);
    const MergeCandidate* best = nullptr;
    // Who is given up is likely to be wanted back: two builds.
    const double least_worth = kBuildMargin * (view.built == kBaseModel ? 1 : 2);
    double best_worth = least_worth;
    for (const MergeCandidate& candidate : view.candidates) {
      if (!candidate.allowed || candidate.adapter == view.built || candidate.adapter == view.building) continue;
      const auto it = savings_.find(candidate.adapter);
      const Savings known = it == savings_.end() ? Savings() : it->second;
      const double promised = promise(candidate) - kept;
      const double cost = model_.build_cost(candidate.build_cost_rows);
      build_us_ = cost;
      const double worth = cost > 0 ? (known.missed + promised) / cost : 0;
      if (worth <= best_worth) continue;
      // What is there already must be clearly worse, or two equals would take turns: by what is known to come, or
      // lately.
      const auto in_use = savings_.find(view.built);
      if (in_use != savings_.end() && promised <= least_worth * cost && known.rate < 1.2 * in_use->second.rate)
        continue;
      best = &candidate;
      best_worth = worth;
    }
    if (best && view.building == kBaseModel) plan.build = best->adapter;
    if (wants_exclusive(view)) plan.exclusive = view.built;
    built_ = view.built;
    building_ = view.building != kBaseModel || plan.build != kBaseModel;
    return plan;
  }

  bool merged(const StepMix& mix, AdapterId built) override {
    Mode& mode = modes_[MergeCostModel::key_of(mix, built)];
    const MergeCostModel::Gain gain = model_.gain(mix, built);
    const bool other_is_better = (mode.merged ? -gain.mean : gain.mean) > kHysteresis;
    if (mode.is_new || other_is_better) {
      mode = {.merged = gain.mean > 0, .is_new = false, .probe_every = kProbeAfter};
    }
    const double lost = std::abs(gain.mean);
    if (++mode.since_probe < mode.probe_every || lost > kSure * gain.deviation || lost > std::log(kProbeLimit))
      return mode.merged;
    mode.since_probe = 0;
    mode.probe_every =
        std::min(2 * mode.probe_every, kMaxProbeEvery);  // the longer it was right, the less often it is asked
    return !mode.merged;
  }

  void observe(const StepMix& mix, AdapterId merged, const StepTimes& times) override {
    model_.observe(mix, merged, has(mix, built_) ? built_ : kBaseModel, times, building_);
    if (model_.ready() && mix.rows > 0) account(mix, merged);
  }

  void built(const MergeResult& result) override {
    if (!result.status.ok()) return;
    for (auto& [adapter, savings] : savings_) savings.missed = 0;  // from now on against this one
    model_.observe_build(result);
  }
  const char* name() const override { return "cost"; }

 private:
  // What is run in steps of one kind, MergeCostModel::key_of().
  struct Mode {
    bool merged = false, is_new = true;
    int64_t since_probe = 0, probe_every = 0;
  };
  struct Savings {
    double missed = 0;  // us that merging would have saved beyond what is built, fading
    double rate = 0;    // us per step that merging should save, recent steps
    // In the latest step: us that merging its rows saved or would have, and whether it has any.
    double saved = 0;
    bool in_step = false;
  };

  static bool has(const StepMix& mix, AdapterId adapter) {
    if (adapter == kBaseModel) return false;
    return std::any_of(mix.adapters.begin(), mix.adapters.end(),
                       [&](const AdapterRows& rows) { return rows.adapter == adapter && rows.rows > 0; });
  }

  // Of the known backlog. By one rate for all: which steps an adapter happened to be in says little about its next
  // ones, and nothing before its first.
  double promise(const MergeCandidate& candidate) const {
    return kBacklogWeight * per_cost_row_.value * candidate.relative_cost * static_cast<double>(candidate.backlog_rows);
  }

  // How much less the step costs, or would, with each adapter's rows merged.
  void account(const StepMix& mix, AdapterId merged) {
    // Lately: within the time that some builds take, or who is hot for less than that is never followed.
    const double newest =
        build_us_ > 0 ? std::clamp(model_.predicted(mix, merged) / (kBuildsRemembered * build_us_), 0.005, 0.5) : 0.02;
    for (auto& [adapter, savings] : savings_) {
      savings.rate *= 1 - newest;
      savings.saved = 0;
      savings.in_step = false;
    }
    for (const AdapterRows& rows : mix.adapters) {
      if (!rows.allowed || rows.rows == 0) continue;
      const double saved = model_.saving(mix, rows.adapter);
      Savings& savings = savings_[rows.adapter];
      savings.rate += newest * std::max(0.0, saved);
      if (rows.relative_cost > 0)
        per_cost_row_.add(std::max(0.0, saved) / static_cast<double>(rows.rows) / rows.relative_cost);
      savings.saved = saved;
      savings.in_step = true;
    }
    const auto in_use = merged == kBaseModel ? savings_.end() : savings_.find(merged);
    const double had = in_use == savings_.end() ? 0 : std::max(0.0, in_use->second.saved);
    for (auto& [adapter, savings] : savings_)
      if (adapter != merged) savings.missed = std::max(0.0, savings.missed + savings.saved - had);
  }
  void fade(Micros now) {
    const double passed = last_now_ > 0 ? static_cast<double>(now - last_now_) * 1e-6 : 0;
    last_now_ = now;
    for (auto it = savings_.begin(); it != savings_.end();) {
      Savings& savings = it->second;
      savings.missed *= std::exp(-passed / kForget);
      const bool gone = savings.missed < 1 && savings.rate < 1e-3;
      if (gone) savings.missed = savings.rate = 0;
      it = gone && !savings.in_step ? savings_.erase(it) : std::next(it);
    }
  }

  // Leaving others out pays when the merged adapter fills the batch alone and a second product (or its own low-rank
  // one) is dear. The others then get as long a stretch without it.
  bool wants_exclusive(const MergeView& view) {
    const bool was = exclusive_since_ > 0;
    const bool wants = [&] {
      if (view.built == kBaseModel || view.longest_wait >= kMaxExclusiveWait) return false;
      if (!was && view.now < joint_until_) return false;
      for (const MergeCandidate& candidate : view.candidates) {
        if (candidate.adapter != view.built) continue;
        if (candidate.requests < view.max_running || candidate.requests == static_cast<int64_t>(view.queue.size()))
          return false;
        // A decoding batch of it; prompts are bound by arithmetic, where a second product costs nothing.
        if (candidate.rows > 2 * candidate.requests) return false;
        const auto rows = static_cast<double>(view.max_running);
        const double hot_rows = rows * static_cast<double>(candidate.requests) / static_cast<double>(view.queue.size());
        const double low_rank = model_.lora(view.max_running, hot_rows, candidate.relative_cost);
        return std::min(model_.second_product(hot_rows, rows - hot_rows), low_rank) >
               kExclusiveGain * model_.product(rows);
      }
      return false;
    }();
    if (wants && !was) exclusive_since_ = std::max<Micros>(view.now, 1);
    if (!wants && was) {
      joint_until_ = view.now + (view.now - exclusive_since_);
      exclusive_since_ = 0;
    }
    return wants;
  }

  MergeCostModel model_;
  std::map<MergeCostModel::Key, Mode> modes_;
  double build_us_ = 0;           // of the latest candidate
  AdapterId built_ = kBaseModel;  // in the step that was planned
  bool building_ = false;         // beside it
  std::map<AdapterId, Savings> savings_;
  Average per_cost_row_;  // us that merging should save per row and unit of relative cost, of any adapter
  Micros last_now_ = 0, exclusive_since_ = 0, joint_until_ = 0;
};

}  // namespace

std::unique_ptr<MergeChooser> make_cost_chooser() { return std::make_unique<CostChooser>(); }

}  // namespace lk
