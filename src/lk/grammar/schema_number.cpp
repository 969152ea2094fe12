// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "lk/grammar/schema.h"

namespace lk::grammar {
namespace {

namespace json = boost::json;

struct Bound {
  double value = 0;
  std::optional<int64_t> exact;  // when it is an integer
  bool exclusive = false;
};

Result<std::optional<Bound>> read(const json::object& schema, const char* keyword, bool exclusive,
                                  const std::string& where) {
  const json::value* value = schema.if_contains(keyword);
  if (value == nullptr) return std::optional<Bound>();
  constexpr double kExact = 9e15;  // beyond, doubles are not exact integers any more
  Bound bound{.exclusive = exclusive};
  if (const auto* i = value->if_int64()) {
    bound.value = static_cast<double>(*i);
    bound.exact = *i;
  } else if (const auto* d = value->if_double(); d != nullptr && std::isfinite(*d)) {
    bound.value = *d;
    if (*d == std::floor(*d) && std::abs(*d) < kExact) bound.exact = static_cast<int64_t>(*d);
  } else {
    return invalid_argument("{}: \"{}\" must be a number within 64 bits", where, keyword);
  }
  return std::optional(bound);
}

// The tighter of an inclusive and an exclusive bound; `sign` is 1 for lower bounds.
std::optional<Bound> tighter(const std::optional<Bound>& a, const std::optional<Bound>& b, int sign) {
  if (!a.has_value() || !b.has_value()) return a.has_value() ? a : b;
  if (a->value == b->value) return a->exclusive ? a : b;
  return (a->value > b->value) == (sign > 0) ? a : b;
}

std::optional<NumberBound> digits(const std::optional<Bound>& bound) {
  if (!bound.has_value()) return std::nullopt;
  std::string text;
  if (bound->exact.has_value()) {
    text = fmt::format("{}", *bound->exact);
  } else {  // the shortest digits that stand for this double
    char buffer[400];
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), bound->value, std::chars_format::fixed);
    text.assign(buffer, end.ptr);
  }
  NumberBound out{.exclusive = bound->exclusive};
  out.negative = text[0] == '-' && bound->value != 0;
  if (text[0] == '-') text.erase(0, 1);
  const size_t point = std::min(text.find('.'), text.size());
  out.integer = text.substr(0, point);
  if (point < text.size()) out.fraction = text.substr(point + 1);
  return out;
}

}  // namespace

Result<NumberRange> number_range(const json::object& schema, const std::string& where) {
  LK_ASSIGN_OR_RETURN(const auto minimum, read(schema, "minimum", false, where));
  LK_ASSIGN_OR_RETURN(const auto above, read(schema, "exclusiveMinimum", true, where));
  LK_ASSIGN_OR_RETURN(const auto maximum, read(schema, "maximum", false, where));
  LK_ASSIGN_OR_RETURN(const auto below, read(schema, "exclusiveMaximum", true, where));
  const std::optional<Bound> low = tighter(minimum, above, 1), high = tighter(maximum, below, -1);
  NumberRange range;
  range.low = digits(low);
  range.high = digits(high);
  LK_ASSIGN_OR_RETURN(const unsigned types, types_of(schema, where));
  if ((types & kFraction) != 0) {
    constexpr size_t kMaxDigits =
        14;  // one less than number_between writes, so that there is room beside an exclusive bound
    for (const auto* bound : {&range.low, &range.high}) {
      if (bound->has_value() && (*bound)->integer.size() + (*bound)->fraction.size() > kMaxDigits)
        return invalid_argument("{}: bounds of numbers with more than {} digits are not supported", where, kMaxDigits);
    }
    return range;
  }
  constexpr double kLimit = 9.2e18;
  const auto integer = [&](const Bound& bound, int sign) -> std::optional<int64_t> {
    if (bound.exact.has_value()) {
      if (!bound.exclusive) return *bound.exact;
      if (sign > 0 ? *bound.exact == INT64_MAX : *bound.exact == INT64_MIN) return std::nullopt;
      return *bound.exact + sign;
    }
    const double rounded = sign > 0 ? std::ceil(bound.value) : std::floor(bound.value);
    return std::abs(rounded) < kLimit ? std::optional(static_cast<int64_t>(rounded)) : std::nullopt;
  };
  for (const auto& [bound, sign, out] :
       {std::tuple(&low, 1, &range.low_integer), std::tuple(&high, -1, &range.high_integer)}) {
    if (!bound->has_value()) continue;
    *out = integer(**bound, sign);
    if (!out->has_value()) return invalid_argument("{}: bounds of integers beyond 64 bits are not supported", where);
  }
  range.empty_integers =
      range.low_integer.has_value() && range.high_integer.has_value() && *range.low_integer > *range.high_integer;
  return range;
}

}  // namespace lk::grammar
