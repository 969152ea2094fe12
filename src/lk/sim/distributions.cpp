// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/distributions.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lk/base/check.h"
#include "lk/base/file.h"

namespace lk::sim {
namespace {

constexpr int64_t kMaxLength = 1 << 22;

Result<std::vector<int32_t>> read_lengths(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  std::vector<int32_t> values;
  int line_number = 0;
  for (const std::string& line : split(text, '\n')) {
    ++line_number;
    if (line.empty()) continue;
    const Result<int64_t> value = parse_integer(line, "length", 1, kMaxLength);
    if (!value.ok()) return value.status().with_context(fmt::format("{}:{}", path, line_number));
    values.push_back(static_cast<int32_t>(*value));
  }
  if (values.empty()) return invalid_argument("{} has no lengths", path);
  return values;
}

}  // namespace

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator)
      parts.emplace_back();
    else if (c != '\r')
      parts.back() += c;
  }
  return parts;
}

Result<double> parse_number(const std::string& text, const char* what, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // The negated comparison also refuses NaN.
  if (error != std::errc() || end != text.data() + text.size() || !(value >= min && value <= max))
    return invalid_argument("{} must be a number in {}..{}, got \"{}\"", what, min, max, text);
  return value;
}

Result<int64_t> parse_integer(const std::string& text, const char* what, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max)
    return invalid_argument("{} must be a whole number in {}..{}, got \"{}\"", what, min, max, text);
  return value;
}

// --- lengths

LengthDist LengthDist::uniform(int32_t min, int32_t max) {
  LK_CHECK(1 <= min && min <= max);
  LengthDist dist;
  dist.min_ = min;
  dist.max_ = max;
  return dist;
}

LengthDist LengthDist::lognormal(double median, double sigma, int32_t max) {
  LK_CHECK(median >= 1 && sigma > 0 && max >= 1);
  LengthDist dist = uniform(1, max);
  dist.kind_ = Kind::kLognormal;
  dist.log_median_ = std::log(median);
  dist.sigma_ = sigma;
  return dist;
}

LengthDist LengthDist::empirical(std::vector<int32_t> values) {
  LK_CHECK(!values.empty());
  const auto [min, max] = std::minmax_element(values.begin(), values.end());
  LengthDist dist = uniform(*min, *max);
  dist.kind_ = Kind::kEmpirical;
  dist.values_ = std::move(values);
  return dist;
}

int32_t LengthDist::sample(Rng& rng) const {
  switch (kind_) {
    case Kind::kUniform:
      return min_ + static_cast<int32_t>(rng.below(static_cast<uint64_t>(max_ - min_ + 1)));
    case Kind::kLognormal:
      return std::clamp(static_cast<int32_t>(std::lround(std::min(std::exp(log_median_ + sigma_ * rng.normal()), 1e9))),
                        min_, max_);
    case Kind::kEmpirical:
      break;
  }
  return values_[rng.below(values_.size())];
}

int32_t LengthDist::shortest() const { return min_; }
int32_t LengthDist::longest() const { return max_; }

Result<LengthDist> parse_length_dist(const std::string& text) {
  if (text.starts_with("file:")) {
    LK_ASSIGN_OR_RETURN(std::vector<int32_t> values, read_lengths(text.substr(5)));
    return LengthDist::empirical(std::move(values));
  }
  const std::vector<std::string> parts = split(text, ':');
  if (parts[0] == "lognormal") {
    if (parts.size() != 4)
      return invalid_argument("a log-normal length is lognormal:MEDIAN:SIGMA:MAX, got \"{}\"", text);
    LK_ASSIGN_OR_RETURN(const double median, parse_number(parts[1], "the median", 1, kMaxLength));
    LK_ASSIGN_OR_RETURN(const double sigma, parse_number(parts[2], "sigma", 1e-6, 10));
    LK_ASSIGN_OR_RETURN(const int64_t max, parse_integer(parts[3], "the longest", 1, kMaxLength));
    return LengthDist::lognormal(median, sigma, static_cast<int32_t>(max));
  }
  if (parts.size() > 2)
    return invalid_argument("a length is N, MIN:MAX, lognormal:MEDIAN:SIGMA:MAX or file:PATH, got \"{}\"", text);
  LK_ASSIGN_OR_RETURN(const int64_t min, parse_integer(parts.front(), "a length", 1, kMaxLength));
  LK_ASSIGN_OR_RETURN(const int64_t max, parse_integer(parts.back(), "the longer length", min, kMaxLength));
  return LengthDist::uniform(static_cast<int32_t>(min), static_cast<int32_t>(max));
}

// --- popularity

Popularity Popularity::power(double alpha) {
  LK_CHECK(alpha > 0);
  Popularity popularity;
  popularity.parameter_ = alpha;
  return popularity;
}

Popularity Popularity::zipf(double s) {
  LK_CHECK(s >= 0);
  Popularity popularity;
  popularity.kind_ = Kind::kZipf;
  popularity.parameter_ = s;
  return popularity;
}

void Popularity::prepare(int64_t n) {
  LK_CHECK(n >= 1);
  n_ = n;
  if (kind_ != Kind::kZipf) return;
  cumulative_.clear();
  double total = 0;
  for (int64_t i = 1; i <= n; ++i) cumulative_.push_back(total += std::pow(static_cast<double>(i), -parameter_));
}

int64_t Popularity::pick(Rng& rng) const {
  if (kind_ == Kind::kZipf) {
    const double at = rng.uniform() * cumulative_.back();
    return std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at) - cumulative_.begin();
  }
  const double u = rng.uniform();
  return std::min(n_ - 1,
                  static_cast<int64_t>(static_cast<double>(n_) * (parameter_ == 1 ? u : std::pow(u, 1 / parameter_))));
}

Result<Popularity> parse_popularity(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  if (text == "uniform") return Popularity::uniform();
  if (parts.size() == 2 && parts[0] == "power") {
    LK_ASSIGN_OR_RETURN(const double alpha, parse_number(parts[1], "alpha", 1e-3, 100));
    return Popularity::power(alpha);
  }
  if (parts.size() == 2 && parts[0] == "zipf") {
    LK_ASSIGN_OR_RETURN(const double s, parse_number(parts[1], "the Zipf exponent", 0, 10));
    return Popularity::zipf(s);
  }
  return invalid_argument("a popularity is uniform, power:ALPHA or zipf:S, got \"{}\"", text);
}

}  // namespace lk::sim
