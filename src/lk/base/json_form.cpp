// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_form.h"

#include <charconv>
#include <cmath>

#include <boost/json/parse.hpp>

#include "lk/base/plain_text.h"

namespace lk {
namespace {

std::string range_text(int64_t min, int64_t max, std::string_view unit) {
  const bool open = max == kNoMaximum || max >= kAnyLength;
  if (open && (min <= 0 && !unit.empty())) return "";
  if (open && min == std::numeric_limits<int64_t>::min()) return "";
  if (open) return fmt::format(", {} or more{}", min, unit);
  if (min == 0 && !unit.empty()) return fmt::format(", at most {}{}", max, unit);
  return fmt::format(", {} to {}{}", min, max, unit);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view words) {
  std::vector<std::string_view> parts;
  while (!words.empty()) {
    const size_t end = words.find('|');
    parts.push_back(words.substr(0, end));
    words.remove_prefix(end == std::string_view::npos ? words.size() : end + 1);
  }
  return parts;
}

std::string describe_values(const Field& field) {
  const auto count = [&] { return field.max_count > 0 ? fmt::format(", at most {}", field.max_count) : std::string(); };
  const auto words = [&] { return fmt::format("{}", fmt::join(split_words(field.detail), ", ")); };
  switch (field.kind) {
    case FieldKind::kFlag:
      return "true or false";
    case FieldKind::kInteger:
      return "integer" + range_text(field.min, field.max, "");
    case FieldKind::kCount:
      return "integer" + range_text(field.min, field.max, "") + ", or true";
    case FieldKind::kNumber:
      return fmt::format("number, {}{} to {}", field.above ? "above " : "", field.low, field.high);
    case FieldKind::kText:
      return "text" + range_text(field.min, field.max, " bytes");
    case FieldKind::kTexts:
      return fmt::format("text{}, or a list{}", range_text(field.min, field.max, " bytes"), count());
    case FieldKind::kWord:
      return words();
    case FieldKind::kWords:
      return fmt::format("list of {}", words());
    case FieldKind::kTokens:
      return "token ids" + count();
    case FieldKind::kObject:
      return field.detail.empty() ? "object" : std::string(field.detail);
    case FieldKind::kList:
      return fmt::format("list of {}{}", field.detail.empty() ? "objects" : field.detail, count());
    case FieldKind::kPrompts:
      return fmt::format("text, token ids, or a list{}", count());
    case FieldKind::kId:
      return "text or integer";
    case FieldKind::kBiases:
      return fmt::format("object of token ids{}, with numbers, {} to {}", count(), field.low, field.high);
    case FieldKind::kSchema:
      return fmt::format("JSON schema, at most {} bytes", field.max);
    case FieldKind::kContent:
      return fmt::format("text, or a list of {}", field.part);
    case FieldKind::kChoice:
      return fmt::format("{}, or {}", words(), field.part);
    case FieldKind::kPlain:
      return fmt::format("object{}", count());
    case FieldKind::kPattern:
      return fmt::format("text, {}", field.detail);
    case FieldKind::kArgument:
      return "JSON object or list, or text of one";
    case FieldKind::kIgnored:
      return "ignored";
    case FieldKind::kRefused:
      return "refused";
  }
  return "";
}

void read_field(JsonFields& fields, const Field& field, bool& out) { fields.read_bool(field.name, out); }

void read_field(JsonFields& fields, const Field& field, double& out) {
  fields.read_double(field.name, out, field.low, field.high, field.above);
}

void read_field(JsonFields& fields, const Field& field, std::string& out) {
  if (field.kind != FieldKind::kWord && field.kind != FieldKind::kChoice)
    return fields.read_string(field.name, out, static_cast<size_t>(field.min), static_cast<size_t>(field.max));
  fields.read_choice(field.name, out, split_words(field.detail));
}

void read_field(JsonFields& fields, const Field& field, std::vector<std::string>& out) {
  fields.read_one_or_more(field.name, out, static_cast<size_t>(field.max_count), static_cast<size_t>(field.min),
                          static_cast<size_t>(field.max));
}

void read_field(JsonFields& fields, const Field& field, int64_t& out) {
  const boost::json::value* value = field.kind == FieldKind::kCount ? fields.find(field.name) : nullptr;
  if (value != nullptr && value->is_bool()) {
    out = value->get_bool() ? 0 : -1;
  } else if (value != nullptr && !value->is_number()) {
    fields.wrong_kind(field.name, fmt::format("an integer from {} to {}, or true", field.min, field.max), *value);
  } else {
    fields.read_int(field.name, out, field.min, field.max);
  }
}

void read_field(JsonFields& fields, const Field& field, int& out) {
  int64_t wide = out;
  read_field(fields, field, wide);
  out = static_cast<int>(wide);
}

bool is_standard(const Field& field, const boost::json::value& value) {
  if (field.standard.empty()) return value.is_double() && value.get_double() == 0;
  const boost::json::value standard = boost::json::parse(field.standard);
  if (value.is_number() && standard.is_number()) return value.to_number<double>() == standard.to_number<double>();
  return value == standard;
}

void read_biases(JsonFields& fields, const Field& field, int64_t vocab_size,
                 std::vector<std::pair<int32_t, float>>& out) {
  const boost::json::object* biases = fields.object(field.name);
  if (biases == nullptr) return;
  if (biases->size() > static_cast<size_t>(field.max_count))
    return fields.fail(field.name, "has {} entries, at most {} are allowed", biases->size(), field.max_count);
  std::vector<std::pair<int32_t, float>> pairs;
  for (const auto& [key, bias] : *biases) {
    int64_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 || token >= vocab_size)
      return fields.fail(field.name, "names \"{}\", keys must be token ids below {}",
                         clean_text(std::string_view(key), 32), vocab_size);
    const double number = bias.is_number() ? bias.to_number<double>() : std::nan("");
    if (!(number >= field.low && number <= field.high))
      return fields.fail(field.name, "of token {} must be a number from {} to {}", token, field.low, field.high);
    pairs.emplace_back(static_cast<int32_t>(token), static_cast<float>(number));
  }
  out = std::move(pairs);
}

}  // namespace lk
