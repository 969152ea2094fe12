// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_fields.h"

#include <cmath>

#include <boost/json/parse.hpp>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"

namespace lk {

namespace json = boost::json;

Result<json::object> parse_json_object(std::string_view text, std::string_view where) {
  json::error_code error;
  json::value value = json::parse({text.data(), text.size()}, error);
  if (error) return data_loss("{}: not valid JSON: {}", where, error.message());
  if (!value.is_object()) return data_loss("{}: must be a JSON object, is {}", where, json_kind(value));
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
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) return static_cast<int64_t>(number);
  }
  return std::nullopt;  // uint64 appears only above the int64 range
}

std::string number_problem(double value, double low, double high, bool above) {
  if (value >= low && value <= high && !(above && value == low)) return "";
  return fmt::format("must be {} {} and at most {}, is {}", above ? "above" : "at least", low, high, value);
}

// --- JsonErrors

void JsonErrors::set(std::string path, std::string message) {
  if (failed()) return;
  path_ = std::move(path);
  status_ = invalid_argument("{}{}{}", style_.where, style_.where.empty() ? "" : ": ", message);
}

void JsonErrors::fail(const std::string& path, std::string_view rest) {
  if (!failed()) set(path, fmt::format("{}\"{}\" {}", style_.noun, path, rest));
}

void JsonErrors::wrong_kind(const std::string& path, std::string_view expected, const json::value& found) {
  if (style_.shows_values)
    fail(path, fmt::format("must be {}, got {}", expected, clean_text(json_text(found), 80)));
  else
    fail(path, fmt::format("must be {}, is {}", expected, json_kind(found)));
}

void JsonErrors::wrong_integer(const std::string& path, int64_t min, int64_t max, const json::value& found) {
  const bool open = max == std::numeric_limits<int64_t>::max();
  if (const std::optional<int64_t> number = json_integer(found)) {
    if (open)
      fail(path, fmt::format("must be at least {}, is {}", min, *number));
    else
      fail(path, fmt::format("must be from {} to {}, is {}", min, max, *number));
  } else if (style_.shows_values || !found.is_number()) {
    wrong_kind(path, found.is_number() ? "an integer in range" : "an integer", found);
  } else if (open) {
    fail(path, "must be an integer in range");
  } else {
    fail(path, fmt::format("must be an integer from {} to {}", min, max));
  }
}

// --- JsonFields

const json::value* JsonFields::find(std::string_view key) {
  const auto it = object_.find(key);
  if (it == object_.end()) return nullptr;
  read_[static_cast<size_t>(it - object_.begin())] = true;
  return it->value().is_null() ? nullptr : &it->value();
}

bool JsonFields::has(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value != nullptr && !value->is_null();
}

std::vector<std::string> JsonFields::unknown(size_t max_count) const {
  std::vector<std::string> paths;
  for (size_t k = 0; k < read_.size() && paths.size() < max_count; ++k)
    if (!read_[k]) paths.push_back(clean_text(path((object_.begin() + static_cast<std::ptrdiff_t>(k))->key()), 64));
  return paths;
}

void JsonFields::refuse_unknown() {
  if (const std::vector<std::string> names = unknown(1); !names.empty())
    errors_.set(names[0], fmt::format("unknown field \"{}\"", names[0]));
}

void JsonFields::read_bool(std::string_view key, bool& out) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_bool()) return wrong_kind(key, "true or false", *value);
  out = value->get_bool();
}

std::optional<int64_t> JsonFields::integer(std::string_view key, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = json_integer(*value);
  if (number && *number >= min && *number <= max) return number;
  errors_.wrong_integer(path(key), min, max, *value);
  return std::nullopt;
}

void JsonFields::read_double(std::string_view key, double& out, double min, double max, bool above) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_number()) return wrong_kind(key, "a number", *value);
  const double number = value->to_number<double>();
  if (const std::string problem = number_problem(number, min, max, above); !problem.empty())
    return errors_.fail(path(key), problem);
  out = number;
}

void JsonFields::read_string(std::string_view key, std::string& out, size_t min_bytes, size_t max_bytes) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) return wrong_kind(key, "a string", *value);
  const json::string& text = value->get_string();
  if (text.size() < min_bytes) return fail(key, "must not be empty");
  if (text.size() > max_bytes) return fail(key, "has {} bytes, at most {} are allowed", text.size(), max_bytes);
  out.assign(text.data(), text.size());
}

void JsonFields::read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& words) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) return wrong_kind(key, "a string", *value);
  for (const std::string_view word : words)
    if (word == std::string_view(value->get_string())) return void(out = word);
  fail(key, "must be one of {}", fmt::join(words, ", "));
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

void JsonFields::read_one_or_more(std::string_view key, std::vector<std::string>& out, size_t max_count,
                                  size_t min_bytes, size_t max_bytes) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  std::vector<std::string> strings;
  const auto add = [&](const json::value& item) {
    if (!item.is_string()) return wrong_kind(key, "a string or a list of strings", item);
    const json::string& text = item.get_string();
    if (text.size() < min_bytes || text.size() > max_bytes)
      return fail(key, "has a string of {} bytes, from {} to {} are allowed", text.size(), min_bytes, max_bytes);
    strings.emplace_back(text.data(), text.size());
  };
  if (!value->is_array()) {
    add(*value);
  } else if (value->get_array().size() > max_count) {
    return fail(key, "has {} strings, at most {} are allowed", value->get_array().size(), max_count);
  } else {
    for (const json::value& item : value->get_array()) add(item);
  }
  out = std::move(strings);
}

void JsonFields::read_ints(std::string_view key, std::vector<int64_t>& out, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  std::vector<int64_t> numbers;
  const auto add = [&](const json::value& item) {
    const std::optional<int64_t> number = json_integer(item);
    if (!number) return wrong_kind(key, "an integer or a list of integers", item);
    if (*number < min || *number > max) return fail(key, "has {}, each must be from {} to {}", *number, min, max);
    numbers.push_back(*number);
  };
  if (value->is_array()) {
    for (const json::value& item : value->get_array()) add(item);
  } else {
    add(*value);
  }
  out = std::move(numbers);
}

void JsonFields::read_tokens(std::string_view key, std::vector<int32_t>& out, int64_t vocab_size, size_t max_count) {
  if (const json::array* list = array(key, max_count)) read_token_list(*list, path(key), vocab_size, out, errors_);
}

const json::object* JsonFields::object(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) return wrong_kind(key, "an object", *value), nullptr;
  return &value->get_object();
}

const json::array* JsonFields::array(std::string_view key, size_t max_count) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) return wrong_kind(key, "a list", *value), nullptr;
  if (value->get_array().size() > max_count)
    return fail(key, "has {} entries, at most {} are allowed", value->get_array().size(), max_count), nullptr;
  return &value->get_array();
}

void JsonFields::refuse(std::string_view key, std::string_view reason) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  const bool harmless =
      (value->is_bool() && !value->get_bool()) || (value->is_string() && value->get_string().empty()) ||
      (value->is_array() && value->get_array().empty()) || (value->is_object() && value->get_object().empty()) ||
      (value->is_int64() && value->get_int64() == 0);
  if (!harmless) fail(key, "is not supported: {}", reason);
}

bool read_token_list(const json::array& list, const std::string& path, int64_t vocab_size, std::vector<int32_t>& out,
                     JsonErrors& errors) {
  out.clear();
  out.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::optional<int64_t> token = json_integer(list[i]);
    if (!token) {
      errors.fail(path, fmt::format("must be a list of token ids, entry {} is {}", i, json_kind(list[i])));
      return false;
    }
    if (*token < 0 || *token >= vocab_size) {
      errors.set(path, fmt::format("\"{}\": token id {} at position {} is outside the vocabulary of {}", path, *token,
                                   i, vocab_size));
      return false;
    }
    out.push_back(static_cast<int32_t>(*token));
  }
  return true;
}

}  // namespace lk
