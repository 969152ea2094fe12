// SPDX-License-Identifier: Apache-2.0
#include "lk/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lk {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// Llama 3.1: low frequencies are divided by `factor`, high ones kept, the band between blended.
void scale_llama3(const RopeConfig& rope, double original_positions, std::vector<double>& inv_freq) {
  const double low_wavelength = original_positions / rope.low_freq_factor;
  const double high_wavelength = original_positions / rope.high_freq_factor;
  for (double& freq : inv_freq) {
    const double wavelength = kTwoPi / freq;
    if (wavelength > low_wavelength) {
      freq /= rope.factor;
    } else if (wavelength >= high_wavelength) {
      const double smooth =
          (original_positions / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      freq = (1 - smooth) * freq / rope.factor + smooth * freq;
    }
  }
}

double yarn_mscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

// YaRN (arXiv:2309.00071): dimensions that turn more than beta_fast times over the original context are kept, those
// that turn less than beta_slow times are interpolated, with a linear ramp between.
double scale_yarn(const RopeConfig& rope, double original_positions, double head_dim, std::vector<double>& inv_freq) {
  const auto dimension_of = [&](double rotations) {
    return head_dim * std::log(original_positions / (rotations * kTwoPi)) / (2 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / rope.factor * ramp + inv_freq[i] * (1 - ramp);
  }
  if (rope.attention_factor > 0) return rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0)
    return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
  return yarn_mscale(rope.factor, 1.0);
}

// LongRoPE (arXiv:2402.13753): a divisor for each frequency, others once the sequence is longer than the model was made
// for; all positions of a sequence use the same.
double scale_longrope(const RopeConfig& rope, bool is_long, std::vector<double>& inv_freq) {
  const std::vector<double>& factors = is_long ? rope.long_factor : rope.short_factor;
  for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] /= factors[i];
  if (rope.attention_factor > 0) return rope.attention_factor;
  if (rope.factor <= 1) return 1;
  return std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(rope.original_max_positions)));
}

}  // namespace

RopeTable make_rope_table(const ModelConfig& config, int64_t sequence_length) {
  const RopeConfig& rope = config.rope;
  const auto head_dim = static_cast<double>(config.head_dim);
  const auto max_positions = static_cast<double>(config.max_positions);
  const double original =
      rope.original_max_positions > 0 ? static_cast<double>(rope.original_max_positions) : max_positions;
  double theta = rope.theta;
  if (rope.type == RopeType::kDynamic) {
    const double length = std::max(static_cast<double>(sequence_length), original);
    theta *= std::pow(rope.factor * length / original - (rope.factor - 1), head_dim / (head_dim - 2));
  }
  RopeTable table;
  for (int64_t i = 0; i < config.head_dim / 2; ++i)
    table.inv_freq.push_back(std::pow(theta, -2.0 * static_cast<double>(i) / head_dim));
  switch (rope.type) {
    case RopeType::kDefault:
    case RopeType::kDynamic:
      break;
    case RopeType::kLinear:
      for (double& freq : table.inv_freq) freq /= rope.factor;
      break;
    case RopeType::kLlama3:
      scale_llama3(rope, original, table.inv_freq);
      break;
    case RopeType::kYarn:
      table.attention_scaling = scale_yarn(rope, original, head_dim, table.inv_freq);
      break;
    case RopeType::kLongrope:
      table.attention_scaling = scale_longrope(rope, sequence_length > rope.original_max_positions, table.inv_freq);
      break;
  }
  return table;
}

void rope_row(const RopeTable& table, int64_t position, float* cos, float* sin) {
  for (size_t i = 0; i < table.inv_freq.size(); ++i) {
    const double angle = static_cast<double>(position) * table.inv_freq[i];
    cos[i] = static_cast<float>(std::cos(angle) * table.attention_scaling);
    sin[i] = static_cast<float>(std::sin(angle) * table.attention_scaling);
  }
}

}  // namespace lk
