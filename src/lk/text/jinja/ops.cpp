// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/ops.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "lk/text/jinja/format.h"
#include "lk/text/jinja/markup.h"
#include "lk/text/jinja/methods.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

[[noreturn]] void fail_operands(std::string_view op, const Value& a, const Value& b) {
  fail("cannot apply {} to {} and {}", op, type_name(a), type_name(b));
}
[[noreturn]] void fail_overflow() { fail("integer overflow: results must fit 64 bits"); }

Value floor_divide(int64_t a, int64_t b) {
  if (b == 0) fail("division by zero");
  if (b == -1) {
    if (a == INT64_MIN) fail_overflow();
    return integer(-a);
  }
  return integer(a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0));
}

Value modulo(int64_t a, int64_t b) {
  if (b == 0) fail("modulo by zero");
  if (b == -1) return integer(0);
  const int64_t rest = a % b;
  return integer(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

// Python: the result has the sign of b.
double float_modulo(double a, double b) {
  if (b == 0) fail("modulo by zero");
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double float_floor_divide(double a, double b) {
  if (b == 0) fail("division by zero");
  const double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (b < 0) != (rest < 0)) quotient -= 1.0;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1.0 : floored;
}

Value power(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral() && b.integer() >= 0) {
    int64_t result = 1;
    int64_t base = a.integer();
    for (int64_t exponent = b.integer(); exponent > 0; exponent >>= 1) {
      if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
      if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
    }
    return integer(result);
  }
  const double x = a.number();
  const double y = b.number();
  if (x == 0 && y < 0) fail("zero cannot be raised to a negative power");
  if (x < 0 && std::isfinite(x) && std::isfinite(y) && std::floor(y) != y) {
    fail("a negative number to a fractional power is complex, which is not supported");
  }
  const double result = std::pow(x, y);
  if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) fail("float power out of range");
  return Value::Data(result);
}

Value arithmetic(std::string_view op, const Value& a, const Value& b) {
  if (op == "**") return power(a, b);
  if (op == "/") {
    if (b.number() == 0) fail("division by zero");
    return Value::Data(a.number() / b.number());
  }
  if (a.is_integral() && b.is_integral()) {
    const int64_t x = a.integer();
    const int64_t y = b.integer();
    int64_t result = 0;
    if (op == "//") return floor_divide(x, y);
    if (op == "%") return modulo(x, y);
    const bool overflow = op == "+"   ? __builtin_add_overflow(x, y, &result)
                          : op == "-" ? __builtin_sub_overflow(x, y, &result)
                                      : __builtin_mul_overflow(x, y, &result);
    if (overflow) fail_overflow();
    return integer(result);
  }
  const double x = a.number();
  const double y = b.number();
  if (op == "//") return Value::Data(float_floor_divide(x, y));
  if (op == "%") return Value::Data(float_modulo(x, y));
  return Value::Data(op == "+" ? x + y : op == "-" ? x - y : x * y);
}

// A part of a string is markup where the string is.
Value like(Runtime& runtime, const Value& whole, Value part) {
  return whole.is_markup() ? as_markup(runtime, part) : part;
}

bool is_list_or_tuple(const Value& value) {
  return value.is_sequence(SequenceKind::kList) || value.is_sequence(SequenceKind::kTuple);
}

Value repeat(Runtime& runtime, const Value& value, int64_t count) {
  if (value.is_string()) {
    StringBuilder out(runtime);
    if (!value.text().empty()) out.append_fill(count, value.text());
    return value.is_markup() ? runtime.markup(out.take_text()) : out.take();
  }
  SequencePtr out = runtime.sequence(value.as<SequencePtr>()->kind);
  if (value.items().empty()) count = 0;
  for (int64_t k = 0; k < count; ++k) {
    runtime.step_items(value.items().size());
    for (const Value& item : value.items()) out->push(item);
  }
  return Value::Data(std::move(out));
}

std::optional<int64_t> slice_bound(const Value& value) {
  if (value.is_none()) return std::nullopt;
  require_defined(value);
  if (!value.is_integral()) fail("slice bounds must be integers, got {}", type_name(value));
  return value.integer();
}

// Python's slice.indices, for a length and a step.
std::pair<int64_t, int64_t> clamp_bounds(const Value& start, const Value& stop, int64_t step, int64_t length) {
  const int64_t lowest = step > 0 ? 0 : -1;
  const int64_t highest = step > 0 ? length : length - 1;
  const auto clamp = [&](std::optional<int64_t> bound, int64_t absent) {
    if (!bound.has_value()) return absent;
    const int64_t index = *bound < 0 ? *bound + length : *bound;
    return std::clamp(index, lowest, std::max(lowest, highest));
  };
  return {clamp(slice_bound(start), step > 0 ? lowest : highest),
          clamp(slice_bound(stop), step > 0 ? highest : lowest)};
}

Value missing_item(const Value& object, const Value& key) {
  std::string shown;
  if (key.is_string() && key.text().size() < 200)
    append_repr(shown, key, 1000);
  else if (key.is_number())
    append_repr(shown, key, 1000);
  else
    shown = "of that key";
  return undefined(fmt::format("a {} has no element {}", type_name(object), shown));
}

}  // namespace

Value binary(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  runtime.step();
  if (a.is_markup() && op == "%")
    return as_markup(runtime, printf_format(runtime, a.text(), escaped(runtime, b, true)));
  if (a.is_string() && op == "%") return printf_format(runtime, a.text(), b);
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) return arithmetic(op, a, b);
  if (op == "+") {
    if (a.is_string() && b.is_string() && (a.is_markup() || b.is_markup())) {
      const Value left = escaped(runtime, a), right = escaped(runtime, b);
      runtime.check_string(left.text().size() + right.text().size());
      return runtime.markup(left.text() + right.text());
    }
    if (a.is_string() && b.is_string()) {
      runtime.check_string(a.text().size() + b.text().size());
      return runtime.string(a.text() + b.text());
    }
    if (is_list_or_tuple(a) && is_list_or_tuple(b) && type_name(a) == type_name(b)) {
      SequencePtr out = runtime.to_list(a, a.as<SequencePtr>()->kind);
      runtime.step_items(b.items().size());
      for (const Value& item : b.items()) out->push(item);
      return Value::Data(std::move(out));
    }
  }
  if (op == "*") {
    if ((a.is_string() || is_list_or_tuple(a)) && b.is_integral()) return repeat(runtime, a, b.integer());
    if ((b.is_string() || is_list_or_tuple(b)) && a.is_integral()) return repeat(runtime, b, a.integer());
  }
  fail_operands(op, a, b);
}

Value negative(const Value& value) {
  require_defined(value);
  if (value.is<double>()) return Value::Data(-value.as<double>());
  if (!value.is_integral()) fail("cannot negate {}", type_name(value));
  if (value.integer() == INT64_MIN) fail_overflow();
  return integer(-value.integer());
}

Value positive(const Value& value) {
  require_defined(value);
  if (!value.is_number()) fail("cannot apply + to {}", type_name(value));
  return value.is_integral() ? integer(value.integer()) : value;
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  runtime.step();
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    require_defined(item);
    if (!item.is_string()) fail("'in' a string needs a string, got {}", type_name(item));
    runtime.step(static_cast<int64_t>(container.text().size()));
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().find(item) != nullptr;
  if (container.is_sequence()) {
    const auto& items = container.items();
    return std::any_of(items.begin(), items.end(), [&](const Value& other) { return runtime.equals(other, item); });
  }
  if (container.is_object(Object::Kind::kIterator)) {
    auto& it = static_cast<Iterator&>(*container.as<ObjectPtr>());
    while (it.next < it.items().size()) {
      if (runtime.equals(it.items()[it.next++], item)) return true;
    }
    return false;
  }
  fail("'in' needs a string, list or dict on its right, got {}", type_name(container));
}

int64_t length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return num_code_points(value.text());
  if (value.is_sequence()) return static_cast<int64_t>(value.items().size());
  if (value.is_dict()) return static_cast<int64_t>(value.dict().items().size());
  fail("{} has no length", type_name(value));
}

Value get_item(Runtime& runtime, const Value& object, const Value& key) {
  runtime.step();
  require_defined(object);
  if (object.is_dict()) {
    const bool hashable = !key.is_dict() && !key.is_sequence(SequenceKind::kList);
    if (const Value* found = hashable ? object.dict().find(key) : nullptr; found != nullptr) return *found;
  } else if (key.is_integral() && (object.is_string() || object.is_sequence())) {
    const bool indexable = object.is_string() || is_list_or_tuple(object) || object.is_sequence(SequenceKind::kRange);
    if (object.is_string()) runtime.step(static_cast<int64_t>(object.text().size()));
    const int64_t count = length(object);
    const int64_t index = key.integer() < 0 ? key.integer() + count : key.integer();
    if (indexable && index >= 0 && index < count) {
      if (object.is_sequence()) return object.items()[static_cast<size_t>(index)];
      const size_t begin = byte_offset(object.text(), index);
      const std::string_view rest = std::string_view(object.text()).substr(begin);
      return like(runtime, object, runtime.string(rest.substr(0, byte_offset(rest, 1))));
    }
  }
  if (key.is_string()) {
    if (has_method(object, key.text())) return make_method(object, key.text());
    if (object.is<ObjectPtr>()) return object.as<ObjectPtr>()->attribute(runtime, key.text());
  }
  return missing_item(object, key);
}

Value get_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  runtime.step();
  if (object.is_undefined() && name.starts_with("__")) return object;  // private names read as undefined
  require_defined(object);
  if (object.is<ObjectPtr>()) return object.as<ObjectPtr>()->attribute(runtime, name);
  if (has_method(object, name)) return make_method(object, name);
  if (object.is_dict()) {
    if (const Value* found = object.dict().find(name); found != nullptr) return *found;
  }
  if (object.is_sequence() && object.as<SequencePtr>()->is_group) {
    if (name == "grouper") return object.items()[0];
    if (name == "list") return object.items()[1];
  }
  return undefined(fmt::format("a {} has no attribute '{}'", type_name(object), name));
}

Value slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step_value) {
  require_defined(object);
  const bool sliceable = object.is_string() || is_list_or_tuple(object) || object.is_sequence(SequenceKind::kRange);
  if (!sliceable) fail("a {} cannot be sliced", type_name(object));
  if (object.is_string()) runtime.step(static_cast<int64_t>(object.text().size()));
  const int64_t step = slice_bound(step_value).value_or(1);
  if (step == 0) fail("slice step cannot be zero");
  const int64_t count = length(object);
  const auto [begin, end] = clamp_bounds(start, stop, step, count);
  const int64_t num_items = step > 0
                                ? (end > begin ? (end - begin - 1) / step + 1 : 0)
                                : (begin > end ? static_cast<int64_t>((static_cast<uint64_t>(begin - end) - 1) /
                                                                      (uint64_t{0} - static_cast<uint64_t>(step))) +
                                                     1
                                               : 0);
  if (object.is_string() && step == 1) {
    const std::string_view text = object.text();
    const size_t from = byte_offset(text, begin);
    return like(runtime, object,
                runtime.string(text.substr(from, num_items == 0 ? 0 : byte_offset(text.substr(from), num_items))));
  }
  runtime.step(num_items * 16);
  if (object.is_string()) {
    std::vector<size_t> offsets;
    for (size_t pos = 0; pos < object.text().size(); next_code_point(object.text(), pos)) offsets.push_back(pos);
    offsets.push_back(object.text().size());
    std::string out;
    for (int64_t k = 0; k < num_items; ++k) {
      const size_t at = static_cast<size_t>(begin + k * step);
      out.append(object.text(), offsets[at], offsets[at + 1] - offsets[at]);
    }
    return like(runtime, object, runtime.string(std::move(out)));
  }
  const Sequence& source = *object.as<SequencePtr>();
  SequencePtr out = runtime.sequence(source.kind);
  for (int64_t k = 0; k < num_items; ++k) out->push(source.items()[static_cast<size_t>(begin + k * step)]);
  if (source.kind == SequenceKind::kRange) {
    const auto scaled = [&](int64_t index) {
      int64_t product = 0;
      if (__builtin_mul_overflow(index, source.range_step, &product) ||
          __builtin_add_overflow(product, source.range_start, &product)) {
        fail_overflow();
      }
      return product;
    };
    out->range_start = scaled(begin);
    out->range_stop = scaled(end);
    if (__builtin_mul_overflow(step, source.range_step, &out->range_step)) fail_overflow();
  }
  return Value::Data(std::move(out));
}

}  // namespace lk::jinja
