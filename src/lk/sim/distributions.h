// SPDX-License-Identifier: Apache-2.0
// The random choices of a workload: how long prompts and answers are, and which adapter a request asks.
#pragma once

#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/base/variates.h"

namespace lk::sim {

// A number of tokens, at least 1.
class LengthDist {
 public:
  static LengthDist fixed(int32_t length) { return uniform(length, length); }
  static LengthDist uniform(int32_t min, int32_t max);  // both included
  // exp(N(ln median, sigma)), cut at max.
  static LengthDist lognormal(double median, double sigma, int32_t max);
  static LengthDist empirical(std::vector<int32_t> values);  // each equally likely
  int32_t sample(Rng& rng) const;
  int32_t shortest() const;
  int32_t longest() const;

 private:
  enum class Kind { kUniform, kLognormal, kEmpirical } kind_ = Kind::kUniform;
  int32_t min_ = 1, max_ = 1;
  double log_median_ = 0, sigma_ = 0;
  std::vector<int32_t> values_;
};
// "N", "MIN:MAX", "lognormal:MEDIAN:SIGMA:MAX" or "file:PATH" (one length a line).
Result<LengthDist> parse_length_dist(const std::string& text);

// Which of n things: each alike; S-LoRA's power law, floor(n * U^(1/alpha)) (alpha = 1 is uniform, smaller is more
// skewed); or Zipf, the i-th (from 1) with probability proportional to i^-s.
class Popularity {
 public:
  static Popularity uniform() { return {}; }
  static Popularity power(double alpha);
  static Popularity zipf(double s);
  // Requires: 1 <= n. Fixes n for pick().
  void prepare(int64_t n);
  int64_t pick(Rng& rng) const;

 private:
  enum class Kind { kPower, kZipf } kind_ = Kind::kPower;
  double parameter_ = 1;
  int64_t n_ = 1;
  std::vector<double> cumulative_;  // Zipf
};
// "uniform", "power:ALPHA" or "zipf:S".
Result<Popularity> parse_popularity(const std::string& text);

// A number of `what`; kInvalidArgument with the bounds when it is none or out of them.
Result<double> parse_number(const std::string& text, const char* what, double min, double max);
Result<int64_t> parse_integer(const std::string& text, const char* what, int64_t min, int64_t max);
std::vector<std::string> split(const std::string& text, char separator);

}  // namespace lk::sim
