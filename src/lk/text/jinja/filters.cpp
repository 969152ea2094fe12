// SPDX-License-Identifier: Apache-2.0
// Filters over strings and numbers, and the dispatch by name.
#include "lk/text/jinja/filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>

#include "lk/text/jinja/format.h"
#include "lk/text/jinja/json.h"
#include "lk/text/jinja/markup.h"
#include "lk/text/jinja/methods.h"
#include "lk/text/jinja/ops.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

Value call_str_method(const FilterCall& call, std::string_view method, const Arguments& arguments) {
  const Value text = call.value.is_string() ? call.value : call.runtime.string(call.runtime.str(call.value));
  return make_method(text, method).as<ObjectPtr>()->call(call.runtime, arguments);
}

Value filter_string(const FilterCall& call) {
  call.bind({});
  return call.value.is_string() ? call.value : call.runtime.string(call.runtime.str(call.value));
}

Value filter_case(const FilterCall& call) {
  call.bind({});
  return call_str_method(call, call.name, {});
}

// Unlike str.title, words are split at white space and -({[< only.
Value filter_title(const FilterCall& call) {
  call.bind({});
  const std::string text = call.runtime.str(call.value);
  StringBuilder out(call.runtime);
  const auto separates = [](char32_t c) {
    return is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  for (size_t pos = 0; pos < text.size();) {
    size_t end = pos;
    const bool separator = separates(next_code_point(text, end));
    const size_t first_end = end;
    while (end < text.size()) {
      size_t next = end;
      if (separates(next_code_point(text, next)) != separator) break;
      end = next;
    }
    const std::string_view view = text;
    out.append(upper(view.substr(pos, first_end - pos)));
    out.append(lower(view.substr(first_end, end - first_end)));
    pos = end;
  }
  return out.take();
}

Value filter_trim(const FilterCall& call) {
  const auto bound = call.bind({"chars"});
  Arguments arguments;
  if (bound[0] != nullptr) arguments.positional.push_back(*bound[0]);
  return call_str_method(call, "strip", arguments);
}

Value filter_replace(const FilterCall& call) {
  const auto bound = call.bind({"old", "new", "count"}, 2);
  Arguments arguments;
  for (int k = 0; k < 2; ++k) arguments.positional.push_back(call.runtime.string(call.runtime.str(*bound[k])));
  if (bound[2] != nullptr && !bound[2]->is_none()) arguments.positional.push_back(*bound[2]);
  const Value text = call.runtime.string(call.runtime.str(call.value));  // no markup any more
  return make_method(text, "replace").as<ObjectPtr>()->call(call.runtime, arguments);
}

Value filter_default(const FilterCall& call) {
  const auto bound = call.bind({"default_value", "boolean"});
  const bool absent = call.value.is_undefined() || (call.flag(bound[1]) && !truthy(call.value));
  if (!absent) return call.value;
  return bound[0] != nullptr ? *bound[0] : call.runtime.string("");
}

// Markup is not escaped again, but by forceescape.
Value filter_escape(const FilterCall& call) {
  call.bind({});
  if (call.value.is_markup() && call.name != "forceescape") return call.value;
  return call.runtime.markup(escape_html(call.runtime.str(call.value)));
}

Value filter_safe(const FilterCall& call) {
  call.bind({});
  return as_markup(call.runtime, call.value);
}

Value filter_indent(const FilterCall& call) {
  const auto bound = call.bind({"width", "first", "blank"});
  require_defined(call.value);
  if (!call.value.is_string()) fail("indent needs a string, got {}", type_name(call.value));
  StringBuilder unit_builder(call.runtime);
  if (bound[0] != nullptr && bound[0]->is_string()) {
    unit_builder.append(bound[0]->text());
  } else {
    unit_builder.append_fill(call.integer_or(bound[0], 4));
  }
  const std::string unit = unit_builder.take_text();
  const bool blank = call.flag(bound[2]);
  const std::string text = call.value.text() + "\n";
  const auto lines = split_lines(text, false);
  call.runtime.step(static_cast<int64_t>(text.size()));
  StringBuilder out(call.runtime);
  if (call.flag(bound[1])) out.append(unit);
  for (size_t idx = 0; idx < lines.size(); ++idx) {
    if (idx > 0) out.append("\n");
    if (idx > 0 && (blank || !lines[idx].empty())) out.append(unit);
    out.append(lines[idx]);
  }
  return call.value.is_markup() ? call.runtime.markup(out.take_text()) : out.take();
}

Value filter_center(const FilterCall& call) {
  const auto bound = call.bind({"width"});
  Arguments arguments;
  arguments.positional.push_back(bound[0] != nullptr ? *bound[0] : integer(80));
  return call_str_method(call, "center", arguments);
}

Value filter_truncate(const FilterCall& call) {
  const auto bound = call.bind({"length", "killwords", "end", "leeway"});
  const std::string end = bound[2] != nullptr ? call.runtime.str(*bound[2]) : "...";
  const int64_t limit = call.integer_or(bound[0], 255);
  const int64_t leeway = bound[3] != nullptr && !bound[3]->is_none() ? call.integer_or(bound[3], 5) : 5;
  const int64_t kept = limit - num_code_points(end);
  if (kept < 0 || leeway < 0) fail("truncate: the length must be at least that of the end, the leeway not negative");
  if (length(call.value) - leeway <= limit) return call.value;
  if (!call.value.is_string()) fail("truncate needs a string, got {}", type_name(call.value));
  const std::string_view text = call.value.text();
  std::string_view head = text.substr(0, byte_offset(text, kept));
  if (!call.flag(bound[1])) head = head.substr(0, std::min(head.rfind(' '), head.size()));
  return call.runtime.string(std::string(head) + end);
}

Value filter_wordcount(const FilterCall& call) {
  call.bind({});
  const std::string text = call.runtime.str(call.value);
  int64_t count = 0;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    next_code_point(text, pos);
    const Value one = call.runtime.string(std::string_view(text).substr(begin, pos - begin));
    const bool word = one.text() == "_" || truthy(make_method(one, "isalnum").as<ObjectPtr>()->call(call.runtime, {}));
    count += word && !in_word ? 1 : 0;
    in_word = word;
  }
  return integer(count);
}

Value filter_format(const FilterCall& call) {
  if (!call.arguments.positional.empty() && !call.arguments.named.empty()) {
    fail("format takes positional or named arguments, not both");
  }
  const Value text = call.value.is_string() ? call.value : call.runtime.string(call.runtime.str(call.value));
  if (!call.arguments.named.empty()) {
    DictPtr names = call.runtime.dict();
    for (const auto& [name, value] : call.arguments.named) names->set(call.runtime.string(name), value);
    return binary(call.runtime, "%", text, Value::Data(std::move(names)));
  }
  SequencePtr tuple = call.runtime.sequence(SequenceKind::kTuple);
  for (const Value& value : call.arguments.positional) tuple->push(value);
  return binary(call.runtime, "%", text, Value::Data(std::move(tuple)));
}

// int(text, base), or nothing where Python raises ValueError.
std::optional<int64_t> parse_int(std::string_view text, int64_t base) {
  text = strip(text, true, true);
  const bool negative_sign = text.starts_with('-');
  if (negative_sign || text.starts_with('+')) text = text.substr(1);
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  const char prefix = text.size() > 2 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  const int64_t prefix_base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 0;
  if (prefix_base != 0 && (base == 0 || base == prefix_base)) {
    text = text.substr(text[2] == '_' ? 3 : 2);
    base = prefix_base;
  } else if (base == 0) {
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != std::string_view::npos)
      return std::nullopt;
    base = 10;
  }
  std::string digits = negative_sign ? "-" : "";
  for (size_t idx = 0; idx < text.size(); ++idx) {
    if (text[idx] == '_' && (idx == 0 || idx + 1 == text.size() || text[idx + 1] == '_')) return std::nullopt;
    if (text[idx] == '-') return std::nullopt;
    if (text[idx] != '_') digits += text[idx];
  }
  int64_t result = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), result, static_cast<int>(base));
  if (parsed.ptr != digits.data() + digits.size() || parsed.ec == std::errc::invalid_argument) return std::nullopt;
  if (parsed.ec != std::errc()) fail("int: {} does not fit 64 bits", digits.substr(0, 40));
  return result;
}

std::optional<double> parse_float(std::string_view raw) {
  const std::string_view text = strip(raw, true, true);
  std::string digits;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (size_t idx = 0; idx < text.size(); ++idx) {
    if (text[idx] == '_') {
      if (idx == 0 || idx + 1 == text.size() || !is_digit(text[idx - 1]) || !is_digit(text[idx + 1]))
        return std::nullopt;
      continue;
    }
    digits += text[idx];
  }
  size_t begin = !digits.empty() && (digits[0] == '+' || digits[0] == '-') ? 1 : 0;
  const std::string magnitude = lower(std::string_view(digits).substr(begin));
  const double sign = digits.starts_with('-') ? -1 : 1;
  if (magnitude == "inf" || magnitude == "infinity") return sign * HUGE_VAL;
  if (magnitude == "nan") return std::nan("");
  if (magnitude.empty() || magnitude.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  double result = 0;
  const auto parsed = std::from_chars(magnitude.data(), magnitude.data() + magnitude.size(), result);
  if (parsed.ptr != magnitude.data() + magnitude.size() || parsed.ec == std::errc::invalid_argument)
    return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) result = std::strtod(magnitude.c_str(), nullptr);
  return sign * result;
}

Value truncate_float(double x) {
  if (!(x >= -0x1p63 && x < 0x1p63)) fail("int: the float does not fit 64 bits");
  return integer(static_cast<int64_t>(x));
}

Value filter_int(const FilterCall& call) {
  const auto bound = call.bind({"default", "base"});
  const Value absent = bound[0] != nullptr ? *bound[0] : integer(0);
  require_defined(call.value);
  if (call.value.is_integral()) return integer(call.value.integer());
  if (call.value.is<double>()) {
    return std::isnan(call.value.as<double>()) ? absent : truncate_float(call.value.as<double>());
  }
  if (!call.value.is_string()) return absent;
  if (const auto parsed = parse_int(call.value.text(), call.integer_or(bound[1], 10))) return integer(*parsed);
  const auto number = parse_float(call.value.text());
  return number.has_value() && std::isfinite(*number) ? truncate_float(*number) : absent;
}

Value filter_float(const FilterCall& call) {
  const auto bound = call.bind({"default"});
  require_defined(call.value);
  if (call.value.is_number()) return Value::Data(call.value.number());
  const auto parsed = call.value.is_string() ? parse_float(call.value.text()) : std::nullopt;
  return parsed.has_value() ? Value::Data(*parsed) : bound[0] != nullptr ? *bound[0] : Value::Data(0.0);
}

Value filter_abs(const FilterCall& call) {
  call.bind({});
  require_defined(call.value);
  if (!call.value.is_number()) fail("abs needs a number, got {}", type_name(call.value));
  if (call.value.is<double>()) return Value::Data(std::fabs(call.value.as<double>()));
  return call.value.integer() < 0 ? negative(call.value) : integer(call.value.integer());
}

// round(x, digits) of Python: to even on exact ties, decided on the exact binary value.
double round_float(double x, int64_t digits) {
  if (!std::isfinite(x) || digits > 320) return x;
  if (digits < -308) return std::copysign(0.0, x);
  if (digits < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(x / scale) * scale;
  }
  const std::string text = fmt::format("{:.{}f}", x, digits);
  return std::strtod(text.c_str(), nullptr);
}

Value filter_round(const FilterCall& call) {
  const auto bound = call.bind({"precision", "method"});
  require_defined(call.value);
  const int64_t digits = call.integer_or(bound[0], 0);
  const std::string method = bound[1] != nullptr ? call.runtime.str(*bound[1]) : "common";
  if (method != "common" && method != "ceil" && method != "floor") fail("round: the method is common, ceil or floor");
  if (!call.value.is_number()) fail("round needs a number, got {}", type_name(call.value));
  if (method == "common") {
    if (call.value.is<double>()) return Value::Data(round_float(call.value.as<double>(), digits));
    if (digits >= 0) return integer(call.value.integer());
    if (digits < -18) return integer(0);
    int64_t scale = 1;
    for (int64_t k = digits; k < 0; ++k) scale *= 10;
    const int64_t x = call.value.integer();
    const int64_t rest = ((x % scale) + scale) % scale;
    const Value base = binary(call.runtime, "-", integer(x), integer(rest));
    const bool up = rest > scale - rest || (rest == scale - rest && (base.integer() / scale) % 2 != 0);
    return binary(call.runtime, "+", base, integer(up ? scale : 0));
  }
  const Value scale = binary(call.runtime, "**", integer(10), integer(digits));
  const double scaled = binary(call.runtime, "*", call.value, scale).number();
  if (!std::isfinite(scaled)) fail("round: the number is out of range");
  return Value::Data((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale.number());
}

Value filter_tojson(const FilterCall& call) { return to_json(call.runtime, call.value, call.arguments); }

constexpr FilterEntry kFilters[] = {{"abs", filter_abs},
                                    {"attr", nullptr},
                                    {"capitalize", filter_case},
                                    {"center", filter_center},
                                    {"d", filter_default},
                                    {"default", filter_default},
                                    {"e", filter_escape},
                                    {"escape", filter_escape},
                                    {"filesizeformat", nullptr},
                                    {"float", filter_float},
                                    {"forceescape", filter_escape},
                                    {"format", filter_format},
                                    {"indent", filter_indent},
                                    {"int", filter_int},
                                    {"lower", filter_case},
                                    {"pprint", nullptr},
                                    {"random", nullptr},
                                    {"replace", filter_replace},
                                    {"round", filter_round},
                                    {"safe", filter_safe},
                                    {"string", filter_string},
                                    {"striptags", nullptr},
                                    {"title", filter_title},
                                    {"tojson", filter_tojson},
                                    {"trim", filter_trim},
                                    {"truncate", filter_truncate},
                                    {"upper", filter_case},
                                    {"urlencode", nullptr},
                                    {"urlize", nullptr},
                                    {"wordcount", filter_wordcount},
                                    {"wordwrap", nullptr},
                                    {"xmlattr", nullptr}};

const FilterEntry* find_filter(std::string_view name) {
  const auto* it =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const auto& e) { return e.name == name; });
  return it != std::end(kFilters) ? it : find_sequence_filter(name);
}

}  // namespace

int64_t FilterCall::integer_or(const Value* argument, int64_t absent) const {
  if (argument == nullptr) return absent;
  require_defined(*argument);
  if (!argument->is_integral()) fail("{} needs an integer argument, got {}", name, type_name(*argument));
  return argument->integer();
}

bool has_filter(std::string_view name) { return find_filter(name) != nullptr; }

void require_filter(std::string_view name) {
  const FilterEntry* entry = find_filter(name);
  if (entry == nullptr) fail("there is no filter named '{}'", name);
  if (entry->function == nullptr) fail_unsupported("the filter '{}' is not supported in chat templates", name);
}

Value apply_filter(Runtime& runtime, std::string_view name, const Value& value, const Arguments& arguments) {
  runtime.step();
  require_filter(name);
  const FilterEntry* entry = find_filter(name);
  return entry->function(FilterCall{runtime, value, name, arguments});
}

}  // namespace lk::jinja
