// SPDX-License-Identifier: Apache-2.0
// The tests of the template language: value is name(arguments).
#include <algorithm>

#include "lk/text/jinja/filters.h"
#include "lk/text/jinja/ops.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

using Call = FilterCall;

const Value& other(const Call& call) { return *call.bind({"other"}, 1)[0]; }

bool remainder_is(const Call& call, const Value& divisor, int64_t wanted) {
  return equal(binary(call.runtime, "%", call.value, divisor), integer(wanted));
}

bool test_odd(const Call& call) { return remainder_is(call, integer(2), 1); }
bool test_even(const Call& call) { return remainder_is(call, integer(2), 0); }
bool test_divisibleby(const Call& call) { return remainder_is(call, *call.bind({"num"}, 1)[0], 0); }
bool test_defined(const Call& call) { return !call.value.is_undefined(); }
bool test_undefined(const Call& call) { return call.value.is_undefined(); }
bool test_none(const Call& call) { return call.value.is_none(); }
bool test_boolean(const Call& call) { return call.value.is<bool>(); }
bool test_true(const Call& call) { return call.value.is<bool>() && call.value.as<bool>(); }
bool test_false(const Call& call) { return call.value.is<bool>() && !call.value.as<bool>(); }
bool test_integer(const Call& call) { return call.value.is<int64_t>(); }
bool test_float(const Call& call) { return call.value.is<double>(); }
bool test_number(const Call& call) { return call.value.is_number(); }
bool test_string(const Call& call) { return call.value.is_string(); }
bool test_mapping(const Call& call) { return call.value.is_dict(); }
bool test_escaped(const Call& call) { return call.value.is_markup(); }
bool test_lower(const Call& call) { return is_lower(call.runtime.str(call.value)); }
bool test_upper(const Call& call) { return is_upper(call.runtime.str(call.value)); }

bool test_sequence(const Call& call) {
  if (call.value.is_sequence()) {
    const SequenceKind kind = call.value.as<SequencePtr>()->kind;
    return kind != SequenceKind::kKeys && kind != SequenceKind::kValues && kind != SequenceKind::kItems;
  }
  // jinja2's Undefined has a length and __getitem__, so it passes.
  return call.value.is_string() || call.value.is_dict() || call.value.is_undefined();
}

bool test_iterable(const Call& call) {
  return call.value.is_string() || call.value.is_dict() || call.value.is_undefined() || call.value.is_sequence() ||
         call.value.is_object(Object::Kind::kIterator) || call.value.is_object(Object::Kind::kLoop);
}

bool test_callable(const Call& call) {
  return call.value.is_undefined() || call.value.is_object(Object::Kind::kFunction) ||
         call.value.is_object(Object::Kind::kMethod) || call.value.is_object(Object::Kind::kMacro) ||
         call.value.is_object(Object::Kind::kLoop);
}

bool test_sameas(const Call& call) {
  const Value& same = other(call);
  if (type_name(call.value) != type_name(same)) return false;
  if (call.value.is_sequence()) return call.value.as<SequencePtr>() == same.as<SequencePtr>();
  if (call.value.is_dict()) return call.value.as<DictPtr>() == same.as<DictPtr>();
  return call.runtime.equals(call.value, same);
}

bool test_in(const Call& call) { return contains(call.runtime, *call.bind({"seq"}, 1)[0], call.value); }
// hash: the name is looked up in a dict, which refuses a list.
bool test_filter(const Call& call) {
  return (hash(call.value), call.value.is_string()) && has_filter(call.value.text());
}
bool test_test(const Call& call) { return (hash(call.value), call.value.is_string()) && has_test(call.value.text()); }
bool test_eq(const Call& call) { return call.runtime.equals(call.value, other(call)); }
bool test_ne(const Call& call) { return !call.runtime.equals(call.value, other(call)); }
bool test_lt(const Call& call) { return call.runtime.less_than(call.value, other(call)); }
bool test_gt(const Call& call) { return call.runtime.less_than(other(call), call.value); }
// With NaN, <= is not the negation of >.
bool test_le(const Call& call) { return test_lt(call) || test_eq(call); }
bool test_ge(const Call& call) { return test_gt(call) || test_eq(call); }

struct Entry {
  std::string_view name;
  bool (*function)(const Call&);
};
constexpr Entry kTests[] = {{"!=", test_ne},
                            {"<", test_lt},
                            {"<=", test_le},
                            {"==", test_eq},
                            {">", test_gt},
                            {">=", test_ge},
                            {"boolean", test_boolean},
                            {"callable", test_callable},
                            {"defined", test_defined},
                            {"divisibleby", test_divisibleby},
                            {"eq", test_eq},
                            {"equalto", test_eq},
                            {"escaped", test_escaped},
                            {"even", test_even},
                            {"false", test_false},
                            {"filter", test_filter},
                            {"float", test_float},
                            {"ge", test_ge},
                            {"greaterthan", test_gt},
                            {"gt", test_gt},
                            {"in", test_in},
                            {"integer", test_integer},
                            {"iterable", test_iterable},
                            {"le", test_le},
                            {"lessthan", test_lt},
                            {"lower", test_lower},
                            {"lt", test_lt},
                            {"mapping", test_mapping},
                            {"ne", test_ne},
                            {"none", test_none},
                            {"number", test_number},
                            {"odd", test_odd},
                            {"sameas", test_sameas},
                            {"sequence", test_sequence},
                            {"string", test_string},
                            {"test", test_test},
                            {"true", test_true},
                            {"undefined", test_undefined},
                            {"upper", test_upper}};

const Entry* find_test(std::string_view name) {
  const auto* it = std::find_if(std::begin(kTests), std::end(kTests), [&](const Entry& e) { return e.name == name; });
  return it == std::end(kTests) ? nullptr : it;
}

}  // namespace

bool has_test(std::string_view name) { return find_test(name) != nullptr; }

void require_test(std::string_view name) {
  if (!has_test(name)) fail("there is no test named '{}'", name);
}

bool apply_test(Runtime& runtime, std::string_view name, const Value& value, const Arguments& arguments) {
  runtime.step();
  require_test(name);
  const Entry* entry = find_test(name);
  const bool takes_arguments = !arguments.positional.empty() || !arguments.named.empty();
  const FilterCall call{runtime, value, name, arguments};
  static constexpr std::string_view kWithArgument[] = {
      "!=", "<",           "<=", "==", ">",  ">=",       "divisibleby", "eq", "equalto",
      "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt",          "ne", "sameas"};
  const bool expects = std::find(std::begin(kWithArgument), std::end(kWithArgument), name) != std::end(kWithArgument);
  if (takes_arguments && !expects) fail("the test '{}' takes no argument", name);
  return entry->function(call);
}

}  // namespace lk::jinja
