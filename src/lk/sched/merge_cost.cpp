// SPDX-License-Identifier: Apache-2.0
// The cost chooser. Three measured quantities predict what nobody has run yet:
//   product(n) = a + b n   time of a step of n rows without its low-rank part; a is reading the weights once. Least squares, forgetting.
//   lora                   time per unit of low-rank work, a unit being relative_cost x rows; apart for small and large steps.
//   build                  cost of building / (2 reads + b x build_cost_rows): reading W, writing W', and the products.
// What was run is remembered by kind of step (rows, share of the merged adapter, distinct adapters, its relative cost) and mode; measured
// times replace predictions.
//
// Building is a ski rental problem: rent (run unmerged) until the rent paid would have bought the skis. That alone is never worse than twice
// the best choice in hindsight; the known backlog lets it buy earlier. Once something is built, the rent is only what another one would have
// saved beyond it: with a fair queue whoever was served last looks hottest, and what is built would be given up for each in turn.
#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "lk/sched/merge_chooser.h"

namespace lk {
namespace {

constexpr double kFirstRows = 4;      // a segment of fewer rows costs as much: its weights are read once
constexpr double kRidgeRows = 16;     // assumed while all steps had the same size: fewer rows cost the same
constexpr double kLeastRidgeRows = 8;
constexpr int64_t kSmallStep = 64;    // rows
constexpr int64_t kMaxProbeEvery = 1024;

double units_of(const AdapterRows& rows) { return rows.rows == 0 ? 0 : rows.relative_cost * std::max(kFirstRows, static_cast<double>(rows.rows)); }

// An average that follows quickly at first, and does not believe in one step that took much longer than usual.
struct Average {
  double value = 0;
  int64_t count = 0;
  void add(double x, double weight = 0.1) {
    if (count >= 3) x = std::min(x, 1.5 * value);
    ++count;
    value += std::max(weight, 1 / static_cast<double>(count)) * (x - value);
  }
};

// y = a + b n with a, b >= 0; old observations fade.
class Line {
 public:
  void add(double n, double y) {
    for (double* sum : {&s_, &sn_, &snn_, &sy_, &sny_}) *sum *= 0.995;
    s_ += 1, sn_ += n, snn_ += n * n, sy_ += y, sny_ += n * y;
  }
  bool empty() const { return s_ == 0; }
  std::pair<double, double> coefficients() const {
    if (empty()) return {0, 0};
    const double mean_n = sn_ / s_, mean_y = sy_ / s_, variance = snn_ / s_ - mean_n * mean_n;
    if (variance < 0.02 * mean_n * mean_n) {  // one size only: split it at the ridge
      const double a = mean_y * std::min(1.0, kRidgeRows / mean_n);
      return {a, std::max(0.0, mean_y - a) / mean_n};
    }
    double b = std::max(0.0, (sny_ / s_ - mean_n * mean_y) / variance), a = mean_y - b * mean_n;
    if (a < 0) a = 0, b = mean_y / mean_n;
    return {a, b};
  }
  double at(double n) const {
    const auto [a, b] = coefficients();
    return a + b * n;
  }

 private:
  double s_ = 0, sn_ = 0, snn_ = 0, sy_ = 0, sny_ = 0;
};

class CostChooser : public MergeChooser {
 public:
  explicit CostChooser(const CostChooserOptions& options) : options_(options) {}

  MergePlan plan(const MergeView& view) override {
    fade(view.now);
    MergePlan plan;
    double kept = 0;  // what the backlog promises to the one that would be given up
    for (const MergeCandidate& candidate : view.candidates)
      if (candidate.adapter == view.built) kept = promise(candidate);
    const MergeCandidate* best = nullptr;
    // Who is given up is likely to be wanted back: two builds.
    double best_worth = options_.build_margin * (view.built == kBaseModel ? 1 : 2);
    for (const MergeCandidate& candidate : view.candidates) {
      if (!candidate.allowed || candidate.adapter == view.built || candidate.adapter == view.building) continue;
      const auto it = savings_.find(candidate.adapter);
      if (it == savings_.end()) continue;
      const double promised = std::max(0.0, promise(candidate) - kept);
      const double cost = build_cost(candidate.build_cost_rows);
      const double worth = cost > 0 ? (it->second.missed + promised) / cost : 0;
      if (worth <= best_worth) continue;
      // What is there already must be clearly worse, or two equals would take turns.
      if (const auto in_use = savings_.find(view.built); in_use != savings_.end() && it->second.rate < 1.2 * in_use->second.rate) continue;
      best = &candidate;
      best_worth = worth;
    }
    if (best && view.building == kBaseModel) plan.build = best->adapter;
    if (wants_exclusive(view)) plan.exclusive = view.built;
    return plan;
  }

  bool merged(const StepShape& shape, AdapterId built) override {
    last_kind_ = &kinds_[key_of(shape, built)];
    Kind& kind = *last_kind_;
    const double time[2] = {expected(kind, false, shape, built), expected(kind, true, shape, built)};
    const bool other_is_better = time[!kind.merged] < (1 - options_.hysteresis) * time[kind.merged];
    if (kind.is_new || other_is_better) {
      kind.merged = time[true] < time[false];
      kind.is_new = false;
      kind.probe_every = options_.probe_every;
    }
    if (++kind.since_probe < kind.probe_every || time[!kind.merged] > options_.probe_limit * time[kind.merged]) return kind.merged;
    kind.since_probe = 0;
    kind.probe_every = std::min(2 * kind.probe_every, kMaxProbeEvery);  // the longer it was right, the less often it is asked
    return !kind.merged;
  }

  void observe(const StepShape& shape, AdapterId merged, const StepTimes& times) override {
    Kind* kind = std::exchange(last_kind_, nullptr);
    if (times.total <= 0 || shape.rows == 0) return;
    const auto total = static_cast<double>(times.total), lora = static_cast<double>(times.lora);
    if (kind) kind->time[merged != kBaseModel].add(total);
    double hot_rows = 0, units = 0;
    for (const AdapterRows& rows : shape.adapters) {
      if (rows.adapter == merged && merged != kBaseModel) hot_rows += static_cast<double>(rows.rows);
      else units += units_of(rows);
    }
    if (hot_rows == 0 || hot_rows == static_cast<double>(shape.rows)) product_.add(static_cast<double>(shape.rows), total - lora);
    if (units > 0) lora_[shape.rows > kSmallStep].add(lora / units);
    account(shape, merged);
  }

  void built(const MergeResult& result) override {
    if (result.status.ok())
      for (auto& [adapter, savings] : savings_) savings.missed = 0;  // from now on against this one
    if (!result.status.ok() || result.engine_time <= 0) return;
    const double predicted = predicted_build(result.build_cost_rows);
    if (predicted > 0) build_ratio_.add(static_cast<double>(result.engine_time) / predicted, 0.3);
  }
  const char* name() const override { return "cost"; }

 private:
  struct Kind {
    Average time[2];  // unmerged, merged
    bool merged = false, is_new = true;
    int64_t since_probe = 0, probe_every = 0;
  };
  using Key = std::tuple<int, int, int, int>;
  struct Savings {
    double missed = 0;   // us that merging would have saved beyond what is built, fading
    double rate = 0;     // us per step that merging should save, recent steps; by the model for everybody, since adapters are compared by it
    Average per_row;     // the same per row of the adapter
  };

  static Key key_of(const StepShape& shape, AdapterId hot) {
    double hot_rows = 0, cost = 0;
    int distinct = 0;
    for (const AdapterRows& rows : shape.adapters) {
      if (rows.adapter == hot) hot_rows = static_cast<double>(rows.rows), cost = rows.relative_cost;
      else if (rows.rows > 0) ++distinct;
    }
    const auto rows = static_cast<double>(shape.rows);
    return {static_cast<int>(std::lround(8 * std::log2(rows))), hot_rows == rows ? 9 : static_cast<int>(8 * hot_rows / rows),
            static_cast<int>(std::log2(1.0 + distinct)), cost > 0 ? static_cast<int>(std::lround(2 * std::log2(cost))) : -100};
  }

  double predicted(const StepShape& shape, AdapterId merged) const {
    double units = 0, hot_rows = 0;
    for (const AdapterRows& rows : shape.adapters) {
      if (rows.adapter == merged && merged != kBaseModel) hot_rows = static_cast<double>(rows.rows);
      else units += units_of(rows);
    }
    const auto [a, b] = product_.coefficients();
    const auto rows = static_cast<double>(shape.rows);
    return a + b * rows + second_product(hot_rows, rows - hot_rows) + lora_unit(shape.rows) * units;
  }
  // Time of reading the base once. Steps that are bound by arithmetic do not show it; no machine does many rows while it reads.
  double read_time() const {
    const auto [a, b] = product_.coefficients();
    return std::max(a, kLeastRidgeRows * b);
  }
  // What two products cost beyond one of all rows: few rows wait for their weights, with many rows reading hides behind the arithmetic.
  double second_product(double hot_rows, double other_rows) const {
    if (hot_rows == 0 || other_rows == 0) return 0;
    const double read = read_time(), b = product_.coefficients().second;
    return std::max(read, b * hot_rows) + std::max(read, b * other_rows) - std::max(read, b * (hot_rows + other_rows));
  }
  double lora_unit(int64_t rows) const {
    const bool large = rows > kSmallStep;
    return lora_[large].count > 0 ? lora_[large].value : lora_[!large].value;
  }
  double expected(const Kind& kind, bool merged, const StepShape& shape, AdapterId hot) const {
    return kind.time[merged].count > 0 ? kind.time[merged].value : predicted(shape, merged ? hot : kBaseModel);
  }

  double promise(const MergeCandidate& candidate) const {
    const auto it = savings_.find(candidate.adapter);
    return it == savings_.end() ? 0 : options_.backlog_weight * it->second.per_row.value * static_cast<double>(candidate.backlog_rows);
  }

  // How much less the step costs, or would, with each adapter's rows merged.
  void account(const StepShape& shape, AdapterId merged) {
    for (auto& [adapter, savings] : savings_) savings.rate *= 0.98;
    std::map<AdapterId, double> saved_by;
    for (const AdapterRows& rows : shape.adapters) {
      if (!rows.allowed || rows.rows == 0 || lora_unit(shape.rows) == 0) continue;
      // Both from the same source: the model's error for this kind of step is larger than a small delta.
      const auto known = kinds_.find(key_of(shape, rows.adapter));
      const bool measured = known != kinds_.end() && known->second.time[false].count > 0 && known->second.time[true].count > 0;
      const double expected = predicted(shape, kBaseModel) - predicted(shape, rows.adapter);
      const double saved = measured ? known->second.time[false].value - known->second.time[true].value : expected;
      Savings& savings = savings_[rows.adapter];
      savings.rate += 0.02 * std::max(0.0, expected);
      savings.per_row.add(std::max(0.0, saved) / static_cast<double>(rows.rows));
      saved_by[rows.adapter] = saved;
    }
    const auto in_use = merged == kBaseModel ? saved_by.end() : saved_by.find(merged);
    const double had = in_use == saved_by.end() ? 0 : std::max(0.0, in_use->second);
    for (auto& [adapter, savings] : savings_) {
      const auto it = saved_by.find(adapter);
      if (adapter != merged) savings.missed = std::max(0.0, savings.missed + (it == saved_by.end() ? 0 : it->second) - had);
    }
  }
  void fade(Micros now) {
    const double passed = last_now_ > 0 ? static_cast<double>(now - last_now_) * 1e-6 : 0;
    last_now_ = now;
    for (auto it = savings_.begin(); it != savings_.end();) {
      it->second.missed *= std::exp(-passed / options_.forget_s);
      const bool gone = it->second.missed < 1 && it->second.rate < 1e-3;
      it = gone ? savings_.erase(it) : std::next(it);
    }
  }

  double predicted_build(double build_cost_rows) const {
    return 2 * read_time() + product_.coefficients().second * build_cost_rows;
  }
  double build_cost(double build_cost_rows) const {
    return predicted_build(build_cost_rows) * (build_ratio_.count > 0 ? build_ratio_.value : 1.0);
  }

  // Leaving others out pays when the merged adapter fills the batch alone and a second product (or its own low-rank one) is dear. The others
  // then get as long a stretch without it.
  bool wants_exclusive(const MergeView& view) {
    const bool was = exclusive_since_ > 0;
    const bool wants = [&] {
      if (view.built == kBaseModel || view.longest_wait >= options_.max_exclusive_wait) return false;
      if (!was && view.now < joint_until_) return false;
      for (const MergeCandidate& candidate : view.candidates) {
        if (candidate.adapter != view.built) continue;
        if (candidate.requests < view.max_running || candidate.requests == static_cast<int64_t>(view.queue.size())) return false;
        // A decoding batch of it; prompts are bound by arithmetic, where a second product costs nothing.
        if (candidate.rows > 2 * candidate.requests) return false;
        const auto rows = static_cast<double>(view.max_running);
        const double hot_rows = rows * static_cast<double>(candidate.requests) / static_cast<double>(view.queue.size());
        const double low_rank = lora_unit(view.max_running) * candidate.relative_cost * std::max(kFirstRows, hot_rows);
        return std::min(second_product(hot_rows, rows - hot_rows), low_rank) > options_.exclusive_gain * product_.at(rows);
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

  const CostChooserOptions options_;
  Line product_;
  Average lora_[2];     // small and large steps
  Average build_ratio_;
  std::map<Key, Kind> kinds_;
  Kind* last_kind_ = nullptr;  // of the step that merged() was asked about
  std::map<AdapterId, Savings> savings_;
  Micros last_now_ = 0, exclusive_since_ = 0, joint_until_ = 0;
};

}  // namespace

std::unique_ptr<MergeChooser> make_cost_chooser(const CostChooserOptions& options) { return std::make_unique<CostChooser>(options); }

}  // namespace lk
