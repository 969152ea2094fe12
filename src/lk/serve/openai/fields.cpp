// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/fields.h"

#include "lk/base/plain_text.h"
#include "lk/io/json_fields.h"

namespace lk::openai {

namespace json = boost::json;

const json::value* ApiFields::find(std::string_view key) {
  known_.insert(std::string(key));
  const json::value* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool ApiFields::has(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value != nullptr && !value->is_null();
}

void ApiFields::wrong_kind(std::string_view key, std::string_view expected, const json::value& found) {
  fail(key, "must be {}, is {}", expected, json_kind(found));
}

void ApiFields::read_bool(std::string_view key, bool& out) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_bool()) return wrong_kind(key, "true or false", *value);
  out = value->get_bool();
}

std::optional<int64_t> ApiFields::integer(std::string_view key, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = json_integer(*value);
  if (!number && value->is_number()) {
    fail(key, "must be an integer from {} to {}", min, max);
  } else if (!number) {
    wrong_kind(key, "an integer", *value);
  } else if (*number < min || *number > max) {
    if (max == std::numeric_limits<int64_t>::max())
      fail(key, "must be at least {}, is {}", min, *number);
    else
      fail(key, "must be from {} to {}, is {}", min, max, *number);
  } else {
    return number;
  }
  return std::nullopt;
}

void ApiFields::read_double(std::string_view key, double& out, double min, double max, bool above) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_number()) return wrong_kind(key, "a number", *value);
  const double number = value->to_number<double>();
  if (!(number >= min && number <= max) || (above && number == min))
    return fail(key, "must be {} {} and at most {}, is {}", above ? "above" : "at least", min, max, number);
  out = number;
}

void ApiFields::read_string(std::string_view key, std::string& out, size_t min_bytes, size_t max_bytes) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) return wrong_kind(key, "a string", *value);
  const json::string& text = value->get_string();
  if (text.size() < min_bytes) return fail(key, "must not be empty");
  if (text.size() > max_bytes) return fail(key, "has {} bytes, at most {} are allowed", text.size(), max_bytes);
  out.assign(text.data(), text.size());
}

void ApiFields::read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& words) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) return wrong_kind(key, "a string", *value);
  for (const std::string_view word : words)
    if (word == std::string_view(value->get_string())) return void(out = word);
  fail(key, "must be one of {}", fmt::join(words, ", "));
}

void ApiFields::read_strings(std::string_view key, std::vector<std::string>& out, size_t max_count, size_t min_bytes,
                             size_t max_bytes) {
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

bool to_tokens(const json::array& list, const std::string& param, int64_t vocab_size, std::vector<int32_t>& out,
               FirstError& error) {
  out.clear();
  out.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::optional<int64_t> token = json_integer(list[i]);
    if (!token) {
      error.set(param, fmt::format("\"{}\" must be a list of token ids, entry {} is {}", param, i, json_kind(list[i])));
      return false;
    }
    if (*token < 0 || *token >= vocab_size) {
      error.set(param, fmt::format("\"{}\": token id {} at position {} is outside the vocabulary of {}", param, *token,
                                   i, vocab_size));
      return false;
    }
    out.push_back(static_cast<int32_t>(*token));
  }
  return true;
}

void ApiFields::read_tokens(std::string_view key, std::vector<int32_t>& out, int64_t vocab_size, size_t max_count) {
  if (const json::array* list = array(key, max_count)) to_tokens(*list, path(key), vocab_size, out, error_);
}

const json::object* ApiFields::object(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) return wrong_kind(key, "an object", *value), nullptr;
  return &value->get_object();
}

const json::array* ApiFields::array(std::string_view key, size_t max_count) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) return wrong_kind(key, "a list", *value), nullptr;
  if (value->get_array().size() > max_count)
    return fail(key, "has {} entries, at most {} are allowed", value->get_array().size(), max_count), nullptr;
  return &value->get_array();
}

void ApiFields::refuse(std::string_view key, std::string_view reason) {
  const json::value* value = find(key);
  if (value == nullptr) return;
  const bool harmless =
      (value->is_bool() && !value->get_bool()) || (value->is_string() && value->get_string().empty()) ||
      (value->is_array() && value->get_array().empty()) || (value->is_object() && value->get_object().empty()) ||
      (value->is_int64() && value->get_int64() == 0);
  if (!harmless) fail(key, "is not supported: {}", reason);
}

void ApiFields::unknown(std::vector<std::string>& names) const {
  for (const auto& [key, value] : object_) {
    if (names.size() >= 16) return;
    if (known_.contains(std::string_view(key))) continue;
    names.push_back(clean_text(path(std::string_view(key)), 64));
  }
}

}  // namespace lk::openai
