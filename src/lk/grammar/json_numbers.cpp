// SPDX-License-Identifier: Apache-2.0
// Ranges of numbers, digit by digit.
#include <algorithm>

#include "lk/grammar/json_rules.h"

namespace lk::grammar {
namespace {

constexpr uint64_t kMaxMagnitude = 999'999'999'999'999'999;  // 18 digits

ByteSet digit_range(char first, char last) {
  ByteSet set;
  for (int c = first; c <= last; ++c) set.set(static_cast<size_t>(c));
  return set;
}

// Digits after the point of a number whose digits so far equal those of a bound ("tight") or are past it.
class Fractions {
 public:
  Fractions(Ir& ir, size_t length) : ir_(ir), length_(length) {}

  // `low` and `high`: the bound that still matters, or null.
  Expr build(const NumberBound* low, const NumberBound* high) {
    const Expr first = step(0, low, high);
    const Expr point = first == ir_.never() ? first : ir_.seq({ir_.literal("."), first});
    return ir_.alt({may_stop(0, low, high) ? ir_.empty() : ir_.never(), point});
  }

 private:
  char digit(const NumberBound& bound, size_t at) const {
    return at < bound.fraction.size() ? bound.fraction[at] : '0';
  }
  bool rest_is_zero(const NumberBound& bound, size_t at) const {
    return at >= bound.fraction.size() || bound.fraction.find_first_not_of('0', at) == std::string::npos;
  }
  bool may_stop(size_t at, const NumberBound* low, const NumberBound* high) const {
    if (low != nullptr && (!rest_is_zero(*low, at) || low->exclusive)) return false;
    return high == nullptr || !rest_is_zero(*high, at) || !high->exclusive;
  }
  Expr rest(size_t at, const NumberBound* low, const NumberBound* high) {
    if (low == nullptr && high == nullptr)
      return ir_.repeat(ir_.bytes(digit_range('0', '9')), 0, static_cast<int>(length_ - at));
    return ir_.alt({may_stop(at, low, high) ? ir_.empty() : ir_.never(), step(at, low, high)});
  }
  Expr step(size_t at, const NumberBound* low, const NumberBound* high) {
    if (at == length_) return ir_.never();
    const char from = low != nullptr ? digit(*low, at) : '0', to = high != nullptr ? digit(*high, at) : '9';
    const auto one = [&](char c) { return ir_.bytes(digit_range(c, c)); };
    if (from > to) return ir_.never();
    if (from == to && low != nullptr && high != nullptr) return ir_.seq({one(from), rest(at + 1, low, high)});
    std::vector<Expr> parts;
    char first = from, last = to;
    if (low != nullptr) parts.push_back(ir_.seq({one(first++), rest(at + 1, low, nullptr)}));
    if (high != nullptr) parts.push_back(ir_.seq({one(last--), rest(at + 1, nullptr, high)}));
    if (first <= last) parts.push_back(ir_.seq({ir_.bytes(digit_range(first, last)), rest(at + 1, nullptr, nullptr)}));
    return ir_.alt(std::move(parts));
  }

  Ir& ir_;
  size_t length_;
};

}  // namespace

// Texts of as many digits as both ends have.
Expr JsonRules::digits_between(const std::string& low, const std::string& high) {
  if (low.empty()) return ir_.empty();
  const auto free = [&](size_t count) {
    return ir_.repeat(ir_.bytes(digit_range('0', '9')), static_cast<int>(count), static_cast<int>(count));
  };
  const size_t rest = low.size() - 1;
  const auto one = [&](char c) { return ir_.bytes(digit_range(c, c)); };
  if (low[0] == high[0]) return ir_.seq({one(low[0]), digits_between(low.substr(1), high.substr(1))});
  std::vector<Expr> parts;
  char first = low[0], last = high[0];
  if (low.find_first_not_of('0', 1) != std::string::npos)
    parts.push_back(ir_.seq({one(first++), digits_between(low.substr(1), std::string(rest, '9'))}));
  if (high.find_first_not_of('9', 1) != std::string::npos)
    parts.push_back(ir_.seq({one(last--), digits_between(std::string(rest, '0'), high.substr(1))}));
  if (first <= last) parts.push_back(ir_.seq({ir_.bytes(digit_range(first, last)), free(rest)}));
  return ir_.alt(std::move(parts));
}

Expr JsonRules::magnitude_between(uint64_t low, uint64_t high) {
  std::vector<Expr> parts;
  uint64_t begin = 0;  // the numbers of each length
  for (uint64_t end = 9;; begin = end + 1, end = end > kMaxMagnitude ? UINT64_MAX : end * 10 + 9) {
    const uint64_t first = std::max(low, begin), last = std::min(high, end);
    if (first <= last) parts.push_back(digits_between(std::to_string(first), std::to_string(last)));
    if (high <= end) break;
  }
  return ir_.alt(std::move(parts));
}

Expr JsonRules::integer_between(std::optional<int64_t> low, std::optional<int64_t> high) {
  const auto magnitude = [](int64_t value) {
    return value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  };
  std::vector<Expr> parts;
  if (!high.has_value() || *high >= 0) {
    const uint64_t from = low.has_value() && *low > 0 ? magnitude(*low) : 0;
    const uint64_t to = high.has_value() ? magnitude(*high) : std::max(kMaxMagnitude, from);
    if (from <= to) parts.push_back(magnitude_between(from, to));
  }
  if (!low.has_value() || *low < 0) {
    const uint64_t from = high.has_value() && *high < 0 ? magnitude(*high) : 1;
    const uint64_t to = low.has_value() ? magnitude(*low) : std::max(kMaxMagnitude, from);
    if (from <= to) parts.push_back(ir_.seq({ir_.literal("-"), magnitude_between(from, to)}));
  }
  return ir_.alt(std::move(parts));
}

Expr JsonRules::positive_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high) {
  // 15 digits: so many a double keeps apart, so that no text is rounded to the other side of a bound.
  constexpr size_t kMaxDigits = 15;
  size_t whole = 1;
  for (const auto* bound : {&low, &high}) {
    if (bound->has_value()) whole = std::max(whole, (*bound)->integer.size());
  }
  Fractions fractions(ir_, kMaxDigits - std::min(whole, kMaxDigits - 1));
  const NumberBound zero;
  const NumberBound& from = low.has_value() ? *low : zero;
  const uint64_t first = std::stoull(from.integer);
  const auto literal = [&](uint64_t value) { return ir_.literal(std::to_string(value)); };
  if (!high.has_value()) {
    return ir_.alt({ir_.seq({literal(first), fractions.build(&from, nullptr)}),
                    ir_.seq({magnitude_between(first + 1, 999'999'999'999'999), fractions.build(nullptr, nullptr)})});
  }
  const uint64_t last = std::stoull(high->integer);
  if (first > last) return ir_.never();
  if (first == last) return ir_.seq({literal(first), fractions.build(&from, &*high)});
  std::vector<Expr> parts{ir_.seq({literal(first), fractions.build(&from, nullptr)}),
                          ir_.seq({literal(last), fractions.build(nullptr, &*high)})};
  if (first + 1 < last)
    parts.push_back(ir_.seq({magnitude_between(first + 1, last - 1), fractions.build(nullptr, nullptr)}));
  return ir_.alt(std::move(parts));
}

Expr JsonRules::number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high) {
  const auto is_zero = [](const NumberBound& bound) {
    return bound.integer == "0" && bound.fraction.find_first_not_of('0') == std::string::npos;
  };
  std::vector<Expr> parts;
  if (!high.has_value() || !high->negative)
    parts.push_back(positive_between(low.has_value() && !low->negative ? low : std::nullopt, high));
  if (!low.has_value() || low->negative || is_zero(*low)) {
    // Below zero the ends swap; "-0" is zero and belongs here too.
    const auto nearest = high.has_value() && (high->negative || is_zero(*high)) ? high : std::nullopt;
    parts.push_back(ir_.seq({ir_.literal("-"), positive_between(nearest, low)}));
  }
  return ir_.alt(std::move(parts));
}

}  // namespace lk::grammar
