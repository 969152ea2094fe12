// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/methods.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <span>

#include "lk/text/jinja/format.h"
#include "lk/text/jinja/markup.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

struct Call {
  Runtime& runtime;
  const Value& self;
  const std::string& name;
  const Arguments& arguments;
  const std::string& text() const { return self.text(); }
  std::vector<const Value*> bind(std::initializer_list<std::string_view> names, size_t num_required = 0) const {
    return arguments.bind(name, names, num_required);
  }
};

const std::string& text_argument(const Call& call, const Value& value) {
  require_defined(value);
  if (!value.is_string()) fail("{}() needs a string, got {}", call.name, type_name(value));
  return value.text();
}

int64_t integer_argument(const Call& call, const Value* value, int64_t absent) {
  if (value == nullptr) return absent;
  require_defined(*value);
  if (!value->is_integral()) fail("{}() needs an integer, got {}", call.name, type_name(*value));
  return value->integer();
}

Value text_list(const Call& call, const std::vector<std::string_view>& parts) {
  SequencePtr out = call.runtime.sequence();
  for (const std::string_view part : parts) out->push(call.runtime.string(part));
  return Value::Data(std::move(out));
}

Value strip_method(const Call& call) {
  const auto bound = call.bind({"chars"});
  const bool has_chars = bound[0] != nullptr && !bound[0]->is_none();
  const std::string_view chars = has_chars ? std::string_view(text_argument(call, *bound[0])) : "";
  return call.runtime.string(strip(call.text(), call.name != "rstrip", call.name != "lstrip", has_chars, chars));
}

// On white space: runs of it separate, and none is kept at the ends.
std::vector<std::string_view> split_space(std::string_view text, int64_t max_split, bool from_right) {
  std::vector<std::string_view> parts;
  text = strip(text, true, true);
  while (!text.empty()) {
    if (max_split >= 0 && static_cast<int64_t>(parts.size()) >= max_split) {
      parts.push_back(text);
      break;
    }
    size_t begin = 0;
    size_t end = text.size();
    if (from_right) {
      for (begin = text.size(); begin > 0;) {
        size_t last = begin - 1;
        while (last > 0 && (text[last] & 0xC0) == 0x80) --last;
        size_t pos = last;
        if (is_space(next_code_point(text, pos))) break;
        begin = last;
      }
      parts.push_back(text.substr(begin));
      text = strip(text.substr(0, begin), false, true);
    } else {
      for (end = 0; end < text.size();) {
        size_t pos = end;
        if (is_space(next_code_point(text, pos))) break;
        end = pos;
      }
      parts.push_back(text.substr(0, end));
      text = strip(text.substr(end), true, false);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

Value split_method(const Call& call) {
  const auto bound = call.bind({"sep", "maxsplit"});
  const int64_t max_split = integer_argument(call, bound[1], -1);
  const bool from_right = call.name == "rsplit";
  call.runtime.step(static_cast<int64_t>(call.text().size()));
  if (bound[0] == nullptr || bound[0]->is_none()) {
    return text_list(call, split_space(call.text(), max_split, from_right));
  }
  const std::string& separator = text_argument(call, *bound[0]);
  if (separator.empty()) fail("empty separator in {}()", call.name);
  std::vector<std::string_view> parts;
  std::string_view text = call.text();
  while (max_split < 0 || static_cast<int64_t>(parts.size()) < max_split) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(from_right ? text.substr(at + separator.size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return text_list(call, parts);
}

Value splitlines_method(const Call& call) {
  const auto bound = call.bind({"keepends"});
  return text_list(call, split_lines(call.text(), bound[0] != nullptr && truthy(*bound[0])));
}

// The part of the text between the code points start and stop; `valid` is false when start is past
// the end.
struct Window {
  std::string_view text;
  int64_t start;
  bool valid;
};
Window window(const Call& call, const Value* start_value, const Value* stop_value) {
  call.runtime.step(static_cast<int64_t>(call.text().size()));
  const auto bound = [](const Value* value) { return value != nullptr && value->is_none() ? nullptr : value; };
  int64_t start = integer_argument(call, bound(start_value), 0);
  int64_t stop = integer_argument(call, bound(stop_value), INT64_MAX);
  if (start == 0 && stop == INT64_MAX) return {call.text(), 0, true};
  const int64_t length = num_code_points(call.text());
  if (start < 0) start = std::max<int64_t>(start + length, 0);
  if (stop < 0) stop = std::max<int64_t>(stop + length, 0);
  stop = std::min(stop, length);
  if (start > length || start > stop) return {{}, start, false};
  const size_t begin = byte_offset(call.text(), start);
  const size_t end = byte_offset(call.text(), stop);
  return {std::string_view(call.text()).substr(begin, end - begin), start, true};
}

Value affix_method(const Call& call) {
  const auto bound = call.bind({"prefix", "start", "end"}, 1);
  const Window part = window(call, bound[1], bound[2]);
  const auto matches = [&](const Value& value) {
    const std::string& affix = text_argument(call, value);
    return part.valid && (call.name == "startswith" ? part.text.starts_with(affix) : part.text.ends_with(affix));
  };
  if (!bound[0]->is_sequence(SequenceKind::kTuple)) return boolean(matches(*bound[0]));
  const auto& affixes = bound[0]->items();
  return boolean(std::any_of(affixes.begin(), affixes.end(), matches));
}

Value find_method(const Call& call) {
  const auto bound = call.bind({"sub", "start", "end"}, 1);
  const std::string& wanted = text_argument(call, *bound[0]);
  const Window part = window(call, bound[1], bound[2]);
  const bool from_right = call.name[0] == 'r';
  const size_t at = !part.valid  ? std::string_view::npos
                    : from_right ? part.text.rfind(wanted)
                                 : part.text.find(wanted);
  if (at == std::string_view::npos) {
    if (call.name.ends_with("index")) fail("{}(): the substring was not found", call.name);
    return integer(-1);
  }
  return integer(part.start + num_code_points(part.text.substr(0, at)));
}

Value count_method(const Call& call) {
  const auto bound = call.bind({"sub", "start", "end"}, 1);
  const std::string& wanted = text_argument(call, *bound[0]);
  const Window part = window(call, bound[1], bound[2]);
  if (!part.valid) return integer(0);
  if (wanted.empty()) return integer(num_code_points(part.text) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = part.text.find(wanted, at)) != std::string_view::npos; at += wanted.size()) ++count;
  return integer(count);
}

Value replace_method(const Call& call) {
  const auto bound = call.bind({"old", "new", "count"}, 2);
  const std::string& from = text_argument(call, *bound[0]);
  const std::string& to = text_argument(call, *bound[1]);
  int64_t left = integer_argument(call, bound[2], -1);
  if (left < 0) left = INT64_MAX;
  call.runtime.step(static_cast<int64_t>(call.text().size()));
  StringBuilder out(call.runtime);
  const std::string_view text = call.text();
  size_t pos = 0;
  while (left-- > 0) {
    const size_t at = text.find(from, pos);
    if (at == std::string_view::npos) break;
    out.append(text.substr(pos, at - pos));
    out.append(to);
    pos = at + from.size();
    if (from.empty()) {  // between all characters, and at both ends
      if (pos >= text.size()) break;
      const size_t next = pos + byte_offset(text.substr(pos), 1);
      out.append(text.substr(pos, next - pos));
      pos = next;
    }
  }
  out.append(text.substr(std::min(pos, text.size())));
  return out.take();
}

Value case_method(const Call& call) {
  call.bind({});
  call.runtime.step(static_cast<int64_t>(call.text().size()) * 4);
  if (call.name == "upper") return call.runtime.string(upper(call.text()));
  if (call.name == "lower") return call.runtime.string(lower(call.text()));
  if (call.name == "capitalize") return call.runtime.string(capitalize(call.text()));
  return call.runtime.string(title(call.text()));
}

Value predicate_method(const Call& call) {
  call.bind({});
  const std::string& text = call.text();
  call.runtime.step(static_cast<int64_t>(text.size()));
  if (call.name == "isupper") return boolean(is_upper(text));
  if (call.name == "islower") return boolean(is_lower(text));
  if (call.name == "isascii") return boolean(is_ascii(text));
  const auto holds = [&](char32_t c) {
    const auto point = static_cast<UChar32>(c);
    const auto type = u_charType(point);
    const bool alpha = type >= U_UPPERCASE_LETTER && type <= U_OTHER_LETTER;
    // Superscript digits are digits of Python but not decimal.
    const int numeric = u_getIntPropertyValue(point, UCHAR_NUMERIC_TYPE);
    const bool digit = numeric == U_NT_DECIMAL || numeric == U_NT_DIGIT;
    if (call.name == "isspace") return is_space(c);
    if (call.name == "isalpha") return alpha;
    if (call.name == "isdigit") return digit;
    if (call.name == "isdecimal") return numeric == U_NT_DECIMAL;
    if (call.name == "isnumeric") return numeric != U_NT_NONE;
    return alpha || numeric != U_NT_NONE;  // isalnum
  };
  for (size_t pos = 0; pos < text.size();) {
    if (!holds(next_code_point(text, pos))) return boolean(false);
  }
  return boolean(!text.empty());
}

Value join_method(const Call& call) {
  const auto bound = call.bind({"iterable"}, 1);
  const SequencePtr items = call.runtime.to_list(*bound[0]);
  StringBuilder out(call.runtime);
  for (size_t idx = 0; idx < items->items().size(); ++idx) {
    if (idx > 0) out.append(call.text());
    out.append(text_argument(call, items->items()[idx]));
  }
  return out.take();
}

Value pad_method(const Call& call) {
  const auto bound = call.bind({"width", "fillchar"}, 1);
  const int64_t width = integer_argument(call, bound[0], 0);
  const std::string fill = bound[1] == nullptr ? " " : text_argument(call, *bound[1]);
  if (num_code_points(fill) != 1) fail("{}() needs a fill of one character", call.name);
  const int64_t missing = std::max<int64_t>(width, 0) - num_code_points(call.text());
  int64_t left = 0;
  std::string_view text = call.text();
  StringBuilder out(call.runtime);
  if (call.name == "zfill") {
    if (missing > 0 && !text.empty() && (text[0] == '+' || text[0] == '-')) {
      out.append(text.substr(0, 1));
      text = text.substr(1);
    }
    out.append_fill(missing, "0");
    out.append(text);
    return out.take();
  }
  // CPython puts the odd space of center() on the left only when the width is odd.
  if (missing > 0 && call.name == "center") left = missing / 2 + (missing & width & 1);
  if (call.name == "rjust") left = missing;
  out.append_fill(left, fill);
  out.append(text);
  out.append_fill(missing - std::max<int64_t>(left, 0), fill);
  return out.take();
}

Value partition_method(const Call& call) {
  const auto bound = call.bind({"sep"}, 1);
  const std::string& separator = text_argument(call, *bound[0]);
  if (separator.empty()) fail("empty separator in {}()", call.name);
  const bool from_right = call.name == "rpartition";
  const std::string_view text = call.text();
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  std::vector<std::string_view> parts = {text, "", ""};
  if (at != std::string_view::npos) {
    parts = {text.substr(0, at), separator, text.substr(at + separator.size())};
  } else if (from_right) {
    parts = {"", "", text};
  }
  SequencePtr out = call.runtime.sequence(SequenceKind::kTuple);
  for (const std::string_view part : parts) out->push(call.runtime.string(part));
  return Value::Data(std::move(out));
}

Value remove_affix_method(const Call& call) {
  const auto bound = call.bind({"affix"}, 1);
  const std::string& affix = text_argument(call, *bound[0]);
  const std::string_view text = call.text();
  const bool prefix = call.name == "removeprefix";
  if (!(prefix ? text.starts_with(affix) : text.ends_with(affix))) return call.self;
  return call.runtime.string(prefix ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

Value format_method(const Call& call) { return str_format(call.runtime, call.text(), call.arguments); }

Value list_count_method(const Call& call) {
  const auto bound = call.bind({"value"}, 1);
  int64_t count = 0;
  for (const Value& item : call.self.items()) count += call.runtime.equals(item, *bound[0]) ? 1 : 0;
  return integer(count);
}

Value list_index_method(const Call& call) {
  const auto bound = call.bind({"value"}, 1);
  for (size_t idx = 0; idx < call.self.items().size(); ++idx) {
    if (call.runtime.equals(call.self.items()[idx], *bound[0])) return integer(static_cast<int64_t>(idx));
  }
  fail("index(): the value is not in the {}", type_name(call.self));
}

Value copy_method(const Call& call) {
  call.bind({});
  return call.self;  // nothing can tell a copy of an immutable value from the value
}

Value dict_get_method(const Call& call) {
  const auto bound = call.bind({"key", "default"}, 1);
  const Value* found = call.self.dict().find(*bound[0]);
  return found != nullptr ? *found : bound[1] != nullptr ? *bound[1] : none();
}

Value dict_view_method(const Call& call) {
  call.bind({});
  const SequenceKind kind = call.name == "keys"     ? SequenceKind::kKeys
                            : call.name == "values" ? SequenceKind::kValues
                                                    : SequenceKind::kItems;
  SequencePtr out = call.runtime.sequence(kind);
  for (const auto& [key, value] : call.self.dict().items()) {
    if (kind == SequenceKind::kItems) {
      SequencePtr entry = call.runtime.sequence(SequenceKind::kTuple);
      entry->push(key);
      entry->push(value);
      out->push(Value::Data(std::move(entry)));
    } else {
      call.runtime.step();
      out->push(kind == SequenceKind::kKeys ? key : value);
    }
  }
  return Value::Data(std::move(out));
}

struct Entry {
  std::string_view name;
  Value (*function)(const Call&);  // null: exists in Python, not supported here
};

constexpr Entry kStringMethods[] = {{"capitalize", case_method},
                                    {"casefold", nullptr},
                                    {"center", pad_method},
                                    {"count", count_method},
                                    {"encode", nullptr},
                                    {"endswith", affix_method},
                                    {"expandtabs", nullptr},
                                    {"find", find_method},
                                    {"format", format_method},
                                    {"format_map", nullptr},
                                    {"index", find_method},
                                    {"isalnum", predicate_method},
                                    {"isalpha", predicate_method},
                                    {"isascii", predicate_method},
                                    {"isdecimal", predicate_method},
                                    {"isdigit", predicate_method},
                                    {"isidentifier", nullptr},
                                    {"islower", predicate_method},
                                    {"isnumeric", predicate_method},
                                    {"isprintable", nullptr},
                                    {"isspace", predicate_method},
                                    {"istitle", nullptr},
                                    {"isupper", predicate_method},
                                    {"join", join_method},
                                    {"ljust", pad_method},
                                    {"lower", case_method},
                                    {"lstrip", strip_method},
                                    {"maketrans", nullptr},
                                    {"partition", partition_method},
                                    {"removeprefix", remove_affix_method},
                                    {"removesuffix", remove_affix_method},
                                    {"replace", replace_method},
                                    {"rfind", find_method},
                                    {"rindex", find_method},
                                    {"rjust", pad_method},
                                    {"rpartition", partition_method},
                                    {"rsplit", split_method},
                                    {"rstrip", strip_method},
                                    {"split", split_method},
                                    {"splitlines", splitlines_method},
                                    {"startswith", affix_method},
                                    {"strip", strip_method},
                                    {"swapcase", nullptr},
                                    {"title", case_method},
                                    {"translate", nullptr},
                                    {"upper", case_method},
                                    {"zfill", pad_method}};
constexpr Entry kListMethods[] = {{"copy", copy_method}, {"count", list_count_method}, {"index", list_index_method}};
constexpr Entry kTupleMethods[] = {{"count", list_count_method}, {"index", list_index_method}};
constexpr Entry kDictMethods[] = {{"copy", copy_method},      {"fromkeys", nullptr},
                                  {"get", dict_get_method},   {"items", dict_view_method},
                                  {"keys", dict_view_method}, {"values", dict_view_method}};

const Entry* find_entry(const Value& self, std::string_view name) {
  std::span<const Entry> entries;
  if (self.is_string()) entries = kStringMethods;
  if (self.is_dict()) entries = kDictMethods;
  if (self.is_sequence(SequenceKind::kList)) entries = kListMethods;
  if (self.is_sequence(SequenceKind::kTuple)) entries = kTupleMethods;
  const auto it = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
  return it == entries.end() ? nullptr : &*it;
}

struct Method : Object {
  Method(Value self_in, std::string name_in)
      : Object(Kind::kMethod), self(std::move(self_in)), name(std::move(name_in)) {}
  Value call(Runtime& runtime, const Arguments& arguments) override {
    runtime.step();
    const Entry* entry = find_entry(self, name);
    if (entry->function == nullptr) fail_unsupported("{}.{}() is not supported", type_name(self), name);
    if (!self.is_markup()) return entry->function(Call{runtime, self, name, arguments});
    const Arguments safe = markup_arguments(runtime, name, arguments);
    return markup_result(runtime, entry->function(Call{runtime, self, name, safe}));
  }
  const Value* content() const override { return &self; }
  Value self;
  std::string name;
};

}  // namespace

bool has_method(const Value& self, std::string_view name) { return find_entry(self, name) != nullptr; }

Value make_method(const Value& self, std::string_view name) {
  return Value::Data(ObjectPtr(std::make_shared<Method>(self, std::string(name))));
}

}  // namespace lk::jinja
