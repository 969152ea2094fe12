// SPDX-License-Identifier: Apache-2.0
#include "lk/merging/cost_model.h"

#include <numbers>

namespace lk {
namespace {

constexpr int64_t kSmallStep = 64;                               // rows
constexpr double kClip = 2.5;                                    // standard deviations that one step may be believed
constexpr double kUnitGain = 0.15, kUnitVariance = 0.05 * 0.05;  // how fast machines change
constexpr double kNoiseGain = 0.02, kLeastNoise = 0.01 * 0.01;
constexpr int64_t kNoisePrior = 4;  // steps that the first guess at the noise is worth
constexpr double kWander = 1e-6;    // variance that a kind gains with each step: nothing stays true for ever
// What the prediction may miss: the level of a kind (its attention, for one), and the effect of merging beyond what a
// wrong ridge explains.
constexpr double kLevelDeviation = 0.15, kEffectDeviation = 0.04;
constexpr double kRidgeDoubt = 1.5;

constexpr double kRidges[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
constexpr double kUsualRidge = 8, kRidgeDeviation = 1.5;  // processors; in powers of two
constexpr double kScoreFades = 0.998, kScoreDeviation = 0.05, kMostPenalty = 2, kClearLead = 1.5;

constexpr double kLeanRows = 8;   // low-rank work over fewer rows costs the same, as long as nothing else is known
constexpr int64_t kMemory = 200;  // observations that a line remembers
constexpr double kOutlier = 2;    // a low-rank part larger by this factor is not believed

int share_class(double hot_rows, double rows) { return hot_rows == rows ? 5 : static_cast<int>(4 * hot_rows / rows); }

}  // namespace

void FadingLine::add(double n, double y) {
  // The first steps of a process are its slowest: they fade soonest.
  const double keep = std::min(1 - 1.0 / kMemory, 0.7 + 0.02 * static_cast<double>(count_++));
  const double weight = 1 / ((kLeanRows + n) * (kLeanRows + n));
  for (double* sum : {&s_, &sn_, &snn_, &sy_, &sny_}) *sum *= keep;
  s_ += weight, sn_ += weight * n, snn_ += weight * n * n, sy_ += weight * y, sny_ += weight * n * y;
}

double FadingLine::at(double n) const {
  if (empty()) return 0;
  const double mean_n = sn_ / s_, mean_y = sy_ / s_, variance = std::max(0.0, snn_ / s_ - mean_n * mean_n);
  // While sizes hardly differ the slope is noise: it leans on the guess above as on one observation at 45 % of the mean
  // size from it.
  const double usual = mean_y / mean_n * (1 - std::min(1.0, kLeanRows / mean_n));
  const double lean = 0.2 * mean_n * mean_n / static_cast<double>(std::min(count_, kMemory));
  const double b = std::max(0.0, (sny_ / s_ - mean_n * mean_y + lean * usual) / (variance + lean)),
               a = mean_y - b * mean_n;
  return a < 0 ? mean_y / mean_n * n : a + b * n;
}

// State (level, effect), observed through (1, merged).
double MergeCostModel::Kind::update(double innovation, bool merged, double variance) {
  const double to_level = level_variance + (merged ? covariance : 0),
               to_effect = covariance + (merged ? effect_variance : 0);
  const double total = to_level + (merged ? to_effect : 0) + variance, most = kClip * std::sqrt(total);
  const double believed = std::clamp(innovation, -most, most);
  level += to_level / total * believed;
  effect += to_effect / total * believed;
  level_variance += kWander - to_level * to_level / total;
  effect_variance += kWander - to_effect * to_effect / total;
  covariance -= to_level * to_effect / total;
  return believed;
}

// The effect may be off by what a neighbour of the ridge would change.
MergeCostModel::Kind MergeCostModel::new_kind(const StepMix& mix, AdapterId hot) const {
  double hot_rows = 0;
  for (const AdapterRows& rows : mix.adapters)
    if (rows.adapter == hot) hot_rows = static_cast<double>(rows.rows);
  const auto extra = [&](double ridge) {
    const RidgeGuess guess{.ridge = ridge};
    const auto rows = static_cast<double>(mix.rows);
    return std::log((guess.product(hot_rows) + guess.product(rows - hot_rows)) / guess.product(rows));
  };
  const double wrong = (extra(kRidgeDoubt * best().ridge) - extra(best().ridge / kRidgeDoubt)) / 2;
  return {.level_variance = kLevelDeviation * kLevelDeviation,
          .effect_variance = kEffectDeviation * kEffectDeviation + wrong * wrong};
}

MergeCostModel::MergeCostModel() {
  for (const double ridge : kRidges) {
    const double octaves = std::log2(ridge / kUsualRidge) / kRidgeDeviation;
    if (ridge == kUsualRidge) best_ = guesses_.size();
    guesses_.push_back({.ridge = ridge, .score = -octaves * octaves / 2});
  }
}

MergeCostModel::Key MergeCostModel::key_of(const StepMix& mix, AdapterId hot) {
  double hot_rows = 0, cost = 0;
  int distinct = 0;
  for (const AdapterRows& rows : mix.adapters) {
    if (rows.adapter == hot)
      hot_rows = static_cast<double>(rows.rows), cost = rows.relative_cost;
    else if (rows.rows > 0)
      ++distinct;
  }
  const auto rows = static_cast<double>(mix.rows);
  return {static_cast<int>(std::lround(std::log2(rows))), share_class(hot_rows, rows),
          static_cast<int>(std::log2(1.0 + distinct)),
          cost > 0 ? static_cast<int>(std::lround(std::log2(cost))) : -100};
}

double MergeCostModel::lora(int64_t step_rows, double rows, double relative_cost) const {
  const bool large = step_rows > kSmallStep;
  return rows == 0 ? 0 : unit() * relative_cost * best().lora[best().lora[large].empty() ? !large : large].at(rows);
}

double MergeCostModel::predicted(const StepMix& mix, AdapterId merged) const {
  double low_rank = 0, hot_rows = 0;
  for (const AdapterRows& rows : mix.adapters) {
    if (rows.adapter == merged && merged != kBaseModel)
      hot_rows = static_cast<double>(rows.rows);
    else
      low_rank += lora(mix.rows, static_cast<double>(rows.rows), rows.relative_cost);
  }
  return product(hot_rows) + product(static_cast<double>(mix.rows) - hot_rows) + low_rank;
}

MergeCostModel::Gain MergeCostModel::gain(const StepMix& mix, AdapterId adapter) const {
  const double merged = predicted(mix, adapter);
  if (merged <= 0) return {};
  const Key key = key_of(mix, adapter);
  const auto it = kinds_.find(key);
  const Kind kind = it == kinds_.end() ? new_kind(mix, adapter) : it->second;
  const double unmerged = predicted(mix, kBaseModel), deviation = std::sqrt(kind.effect_variance);
  double mean = std::log(unmerged / merged) - kind.effect;
  if (std::get<1>(key) == share_class(1, 1)) return {mean, deviation};
  // A second product takes no less than nothing, so there is no more to gain than the low-rank part: the mean of what
  // is left of the doubt.
  double low_rank = 0;
  for (const AdapterRows& rows : mix.adapters)
    if (rows.adapter == adapter) low_rank = lora(mix.rows, static_cast<double>(rows.rows), rows.relative_cost);
  const double most = -std::log1p(-std::min(0.99, low_rank / unmerged)), z = (most - mean) / deviation;
  const double below = std::erfc(-z / std::numbers::sqrt2) / 2,
               density = std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
  mean = most - deviation * (z * below + density);
  return {mean, deviation};
}

double MergeCostModel::saving(const StepMix& mix, AdapterId adapter) const {
  return predicted(mix, kBaseModel) * -std::expm1(-gain(mix, adapter).mean);
}

// A wrong ridge explains some sizes, or one product and two, unevenly; the speed of the machine is the same for all
// guesses.
void MergeCostModel::judge_ridges(double rows, double hot_rows, double plain) {
  const double gain = std::max(kUnitGain, 1 / static_cast<double>(num_steps_ + 1));
  const double variance = (1 + gain) * std::max(noise_, kScoreDeviation * kScoreDeviation);
  size_t leader = best_;
  for (size_t i = 0; i < guesses_.size(); ++i) {
    RidgeGuess& guess = guesses_[i];
    const double measured = std::log(plain / (guess.product(hot_rows) + guess.product(rows - hot_rows)));
    if (num_steps_ == 0) guess.level = measured;
    const double innovation = measured - guess.level;
    guess.score = kScoreFades * guess.score - std::min(innovation * innovation / (2 * variance), kMostPenalty);
    guess.level += gain * std::clamp(innovation, -kClip * std::sqrt(variance), kClip * std::sqrt(variance));
    if (guess.score > guesses_[leader].score) leader = i;
  }
  if (num_steps_ == 0) log_unit_ = best().level;
  if (guesses_[leader].score < best().score + kClearLead) return;
  best_ = leader;
  log_unit_ = best().level;
  kinds_.clear();  // they are what the last one missed
}

void MergeCostModel::observe(const StepMix& mix, AdapterId merged, AdapterId built, const StepTimes& times,
                             bool disturbed) {
  const auto total = static_cast<double>(times.total), low_rank = static_cast<double>(times.lora),
             rows = static_cast<double>(mix.rows);
  if (low_rank >= total || rows == 0) return;
  if (disturbed && !disturbed_) log_unit_before_build_ = log_unit_;
  if (!disturbed && disturbed_) log_unit_ = log_unit_before_build_;
  disturbed_ = disturbed;
  double hot_rows = 0, cost = 0, cost_rows = 0;
  for (const AdapterRows& adapter : mix.adapters) {
    const auto count = static_cast<double>(adapter.rows);
    if (adapter.adapter == merged && merged != kBaseModel)
      hot_rows += count;
    else if (count > 0)
      cost += adapter.relative_cost, cost_rows += adapter.relative_cost * count;
  }
  if (!disturbed || num_steps_ == 0) judge_ridges(rows, hot_rows, total - low_rank);
  // The low-rank part relative to the rest of the same step: what slows both says nothing.
  if (cost > 0 && low_rank > 0) {
    for (RidgeGuess& guess : guesses_) {
      FadingLine& line = guess.lora[mix.rows > kSmallStep];
      const double y = low_rank / (total - low_rank) * (guess.product(hot_rows) + guess.product(rows - hot_rows)) /
                       cost,
                   n = cost_rows / cost;
      line.add(n, line.empty() ? y : std::clamp(y, line.at(n) / kOutlier, line.at(n) * kOutlier));
    }
  }
  if (num_steps_++ == 0) return;
  const Key key = key_of(mix, built);
  Kind unknown = new_kind(mix, built);
  Kind& kind = built == kBaseModel || disturbed ? unknown : kinds_.try_emplace(key, unknown).first->second;
  const bool is_merged = merged != kBaseModel;
  const double believed =
      kind.update(std::log(total / predicted(mix, merged)) - kind.level - (is_merged ? kind.effect : 0), is_merged,
                  noise_ + kUnitVariance);
  log_unit_ += kUnitGain * believed;
  if (!disturbed) {
    const double gain = std::max(kNoiseGain, 1 / static_cast<double>(num_steps_ + kNoisePrior));
    noise_ = std::max(kLeastNoise, noise_ + gain * (believed * believed - noise_));
  }
}

double MergeCostModel::build_cost(double build_cost_rows) const {
  return unit() * build_ratio_ * (2 * best().ridge + build_cost_rows);
}

void MergeCostModel::observe_build(const MergeResult& result) {
  if (!result.status.ok() || result.engine_time <= 0 || num_steps_ == 0) return;
  const double ratio = static_cast<double>(result.engine_time) / std::exp(log_unit_before_build_) /
                       (2 * best().ridge + result.build_cost_rows);
  build_ratio_ = ++num_builds_ == 1 ? ratio : build_ratio_ + 0.3 * (std::min(ratio, 2 * build_ratio_) - build_ratio_);
}

}  // namespace lk
