// SPDX-License-Identifier: Apache-2.0
// MergeCostModel: would this step be faster with the hot adapter's rows on merged weights? The cost chooser asks before
// each step, and tells the model afterwards how long the step took, and how much of that its low-rank products.
//
// The difficulty is that steps are measured on a machine that others use, too, whose speed varies more than merging
// gains. So the model never compares the times of two steps that were run at different times. It keeps three layers:
//
// 1. A formula for the time of a step, up to one factor, the machine's present speed ("unit", in us a row):
//      product(n) = max(ridge, n)   a product of n rows takes as long as reading the weights (worth `ridge` rows) or as
//                                   the arithmetic, whichever is longer
//      lora(n)    = c + d n         one adapter's low-rank part over n rows, per unit of relative cost. It is measured
//                                   against the rest of the same step, so that the machine's speed cancels; one line
//                                   for small steps, one for large ones
//      build      = cost of building / (2 ridge + build_cost_rows): W is read, W' written, B A multiplied
//    An unmerged step has one product and a low-rank part per adapter; a merged one has a second product and no
//    low-rank part for the hot adapter. Which ridge is right is found by trying a few: the one wins by whose formula
//    steps of different sizes, in one product or two, agree best on the unit.
// 2. The unit now: an average of ln(measured / formula) over the latest steps of every kind.
// 3. What the formula misses, by kind of step (its rows, the hot adapter's share, the number of other adapters):
//      ln(measured / formula) = ln(unit) + level of the kind + [the step ran merged] x effect of the kind + noise
//    Only the effect says which mode is faster; a machine that is slow while one mode is tried moves unit and level
//    instead. Both begin as 0, give or take an expected error, and each step moves them by as much as it is worth
//    beside its noise: a Kalman filter, in which a single odd step counts only so much.
//
// All times are us at the machine's present speed. Thread safety: none.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "lk/merging/chooser.h"

namespace lk {

// y = a + b n with a, b >= 0. Least squares of (y - a - b n) / (n + ridge): relative errors. Old observations fade.
class FadingLine {
 public:
  void add(double n, double y);
  bool empty() const { return s_ == 0; }
  double at(double n) const;

 private:
  double s_ = 0, sn_ = 0, snn_ = 0, sy_ = 0, sny_ = 0;
  int64_t count_ = 0;
};

// A guess at how many rows take as long as reading the weights does, and what follows from it.
struct RidgeGuess {
  double ridge = 0;
  double level = 0;  // ln(measured / predicted), lately
  double score = 0;  // ln(likelihood), fading
  FadingLine lora[2];
  double product(double rows) const { return rows == 0 ? 0 : std::max(ridge, rows); }
};

class MergeCostModel {
 public:
  MergeCostModel();

  // ln(time unmerged / time merged) of a step, and how sure that is.
  struct Gain {
    double mean = 0, deviation = 0;
  };

  // `disturbed`: a build runs beside the step, which says nothing about its cost.
  void observe(const StepMix& mix, AdapterId merged, AdapterId built, const StepTimes& times, bool disturbed);
  void observe_build(const MergeResult& result);

  bool ready() const { return num_steps_ >= kFirstSteps && (!best().lora[0].empty() || !best().lora[1].empty()); }
  static constexpr int64_t kFirstSteps = 2;  // the very first is slow for reasons of its own
  // Time of a step with this adapter merged, or kBaseModel for nobody, without what is known of its kind.
  double predicted(const StepMix& mix, AdapterId merged) const;
  Gain gain(const StepMix& mix, AdapterId adapter) const;
  // Time that merging this adapter takes off the step; negative when it adds some.
  double saving(const StepMix& mix, AdapterId adapter) const;
  double build_cost(double build_cost_rows) const;
  double product(double rows) const { return unit() * best().product(rows); }
  double lora(int64_t step_rows, double rows, double relative_cost) const;
  // What two products cost beyond one of all rows: few rows wait for their weights, with many rows reading hides behind
  // the arithmetic.
  double second_product(double hot_rows, double other_rows) const {
    return product(hot_rows) + product(other_rows) - product(hot_rows + other_rows);
  }

  using Key = std::tuple<int, int, int, int>;
  static Key key_of(const StepMix& mix, AdapterId hot);

 private:
  // Level and effect of a kind, and their covariance.
  struct Kind {
    double level = 0, effect = 0, level_variance = 0, effect_variance = 0, covariance = 0;
    // Returns the innovation as believed.
    double update(double innovation, bool merged, double variance);
  };
  Kind new_kind(const StepMix& mix, AdapterId hot) const;

  const RidgeGuess& best() const { return guesses_[best_]; }
  double unit() const { return std::exp(log_unit_); }
  void judge_ridges(double rows, double hot_rows, double plain);

  std::vector<RidgeGuess> guesses_;
  size_t best_ = 0;
  int64_t num_steps_ = 0, num_builds_ = 0;
  double log_unit_ = 0, log_unit_before_build_ = 0;  // ln(us for a row)
  double noise_ = 0.04;                              // variance of ln(measured)
  double build_ratio_ = 1;
  std::map<Key, Kind> kinds_;
  bool disturbed_ = false;
};

}  // namespace lk
