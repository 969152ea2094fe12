// SPDX-License-Identifier: Apache-2.0
#include "lk/io/json_fields.h"

#include <boost/json/parse.hpp>
#include <cmath>

#include "lk/base/file.h"

namespace lk {
namespace json = boost::json;

Result<json::object> parse_json_object(std::string_view text, std::string_view where) {
  json::error_code error;
  json::value value = json::parse({text.data(), text.size()}, error);
  if (error) return data_loss("{}: not valid JSON: {}", where, error.message());
  if (!value.is_object()) {
    return data_loss("{}: expected a JSON object, found {}", where, json_kind(value));
  }
  return std::move(value.get_object());
}

Result<json::object> load_json_object(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(path, size_t{16} << 20));
  return parse_json_object(text, path);
}

const char* json_kind(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "a list";
    case json::kind::object:
      return "an object";
  }
  return "?";
}

std::optional<int64_t> json_integer(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double()) {
    const double number = value.get_double();
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;  // uint64 appears only above the int64 range
}

const json::value* JsonFields::find(std::string_view key) {
  mark_known(key);
  const json::value* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void JsonFields::wrong_kind(std::string_view key, std::string_view expected, const json::value& found) {
  fail(invalid_argument("{}: \"{}\" must be {}, found {}", where_, key, expected, json_kind(found)));
}

void JsonFields::read_int(std::string_view key, int64_t& out, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  const std::optional<int64_t> number = json_integer(*value);
  if (!number) return wrong_kind(key, "an integer", *value);
  if (*number < min || *number > max) {
    return fail(invalid_argument("{}: \"{}\" is {}, it must be between {} and {}", where_, key, *number, min, max));
  }
  out = *number;
}

void JsonFields::read_double(std::string_view key, double& out, double min, double max) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_number()) return wrong_kind(key, "a number", *value);
  const double number = value->to_number<double>();
  if (!(number >= min && number <= max)) {  // also refuses infinities
    return fail(invalid_argument("{}: \"{}\" is {}, it must be between {} and {}", where_, key, number, min, max));
  }
  out = number;
}

void JsonFields::read_bool(std::string_view key, bool& out) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_bool()) return wrong_kind(key, "true or false", *value);
  out = value->get_bool();
}

void JsonFields::read_string(std::string_view key, std::string& out) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) return wrong_kind(key, "a string", *value);
  out = std::string(value->get_string());
}

void JsonFields::read_ints(std::string_view key, std::vector<int64_t>& out, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  std::vector<int64_t> numbers;
  const auto add = [&](const json::value& item) {
    const std::optional<int64_t> number = json_integer(item);
    if (!number) return wrong_kind(key, "an integer or a list of integers", item);
    if (*number < min || *number > max) {
      return fail(
          invalid_argument("{}: \"{}\" contains {}, it must be between {} and {}", where_, key, *number, min, max));
    }
    numbers.push_back(*number);
  };
  if (value->is_array()) {
    for (const json::value& item : value->get_array()) add(item);
  } else {
    add(*value);
  }
  out = std::move(numbers);
}

void JsonFields::read_strings(std::string_view key, std::vector<std::string>& out) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_array()) return wrong_kind(key, "a list of strings", *value);
  std::vector<std::string> strings;
  for (const json::value& item : value->get_array()) {
    if (!item.is_string()) return wrong_kind(key, "a list of strings", item);
    strings.emplace_back(item.get_string());
  }
  out = std::move(strings);
}

std::vector<std::string> JsonFields::unknown_keys() const {
  std::vector<std::string> keys;
  for (const auto& field : object_) {
    if (!known_.contains(std::string_view(field.key()))) keys.emplace_back(field.key());
  }
  return keys;
}

}  // namespace lk
