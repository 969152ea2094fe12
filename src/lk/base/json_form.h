// SPDX-License-Identifier: Apache-2.0
// Forms: what may stand in the JSON objects that clients send. A row of a table says once what a field is called, in
// which objects (forms) it may stand and what it may hold. Parsers read by the rows, and the OpenAPI page and the
// tables of the docs are made of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/json_fields.h"

namespace lk {

enum class FieldKind : uint8_t {
  kFlag,      // true or false
  kInteger,   // from min to max
  kNumber,    // from low to high
  kText,      // of min to max bytes
  kTexts,     // such a text, or a list of at most max_count
  kWord,      // one of those in `detail`: "none|auto"
  kWords,     // a list of at most max_count of them
  kTokens,    // at most max_count token ids
  kObject,    // of the form `detail`, or any
  kList,      // at most max_count objects of the form `detail`, or any values
  kPrompts,   // a text, token ids, or at most max_count of either
  kCount,     // from min to max; true is 0, false is -1 (none)
  kId,        // a text or an integer
  kBiases,    // token ids to numbers from low to high, at most max_count
  kSchema,    // a JSON schema, as an object or as text of at most max bytes
  kContent,   // of a message: a text or a list of objects of the form `part`
  kChoice,    // of a tool: a word of `detail`, or an object of the form `part`
  kPlain,     // an object of at most max_count values of any kind
  kPattern,   // a text of min to max bytes; which ones, the regular expression `detail` says, and somebody later
  kArgument,  // a JSON object or list, or text
  kIgnored,   // has no meaning here, and may hold anything
  kRefused,   // would change the meaning; `detail` says why
};
enum class FieldOrigin : uint8_t { kOpenAi, kAnthropic, kVllm, kSglang, kLlamaCpp, kOurs };  // who calls it so

struct Field {
  std::string_view name;
  uint64_t forms = 0;  // bits
  FieldKind kind = FieldKind::kIgnored;
  FieldOrigin origin = FieldOrigin::kOurs;
  int64_t min = 0, max = 0;
  double low = 0, high = 0;
  bool above = false;  // low itself is not allowed
  int64_t min_count = 0, max_count = 0;
  std::string_view detail = {}, standard = {}, about = {};  // standard: the default, as JSON
  bool required = false;
  std::string_view part = {};

  // What a number that is not allowed is said to be; "" for others.
  std::string problem(double value) const { return number_problem(value, low, high, above); }
};

inline constexpr int64_t kNoMaximum = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kAnyLength = int64_t{1} << 40;  // of a text: the document's own limit comes first

// "a|b" as a and b.
std::vector<std::string_view> split_words(std::string_view words);
// What a field may hold, in words: "integer, 1 to 16".
std::string describe_values(const Field& field);

// One function for each kind of row, so that a table reads as a table.
namespace rows {

using enum FieldOrigin;

constexpr Field flag(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view standard,
                     std::string_view about = {}) {
  return {
      .name = name, .forms = forms, .kind = FieldKind::kFlag, .origin = origin, .standard = standard, .about = about};
}
constexpr Field integer(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min, int64_t max,
                        std::string_view standard, std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kInteger,
          .origin = origin,
          .min = min,
          .max = max,
          .standard = standard,
          .about = about};
}
constexpr Field number(std::string_view name, uint64_t forms, FieldOrigin origin, double low, double high,
                       std::string_view standard, std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kNumber,
          .origin = origin,
          .low = low,
          .high = high,
          .standard = standard,
          .about = about};
}
constexpr Field text(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min_bytes, int64_t max_bytes,
                     std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kText,
          .origin = origin,
          .min = min_bytes,
          .max = max_bytes,
          .about = about};
}
constexpr Field texts(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min_count, int64_t max_count,
                      int64_t min_bytes, int64_t max_bytes, std::string_view about = {}) {
  Field field = text(name, forms, origin, min_bytes, max_bytes, about);
  field.kind = FieldKind::kTexts;
  field.min_count = min_count;
  field.max_count = max_count;
  return field;
}
constexpr Field pattern(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min_bytes, int64_t max_bytes,
                        std::string_view expression, std::string_view about = {}) {
  Field field = text(name, forms, origin, min_bytes, max_bytes, about);
  field.kind = FieldKind::kPattern;
  field.detail = expression;
  return field;
}
constexpr Field word(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view words,
                     std::string_view standard, std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kWord,
          .origin = origin,
          .detail = words,
          .standard = standard,
          .about = about};
}
constexpr Field tokens(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min_count, int64_t max_count,
                       std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kTokens,
          .origin = origin,
          .min_count = min_count,
          .max_count = max_count,
          .about = about};
}
constexpr Field object(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view form,
                       std::string_view about = {}) {
  return {.name = name, .forms = forms, .kind = FieldKind::kObject, .origin = origin, .detail = form, .about = about};
}
constexpr Field list(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t min_count, int64_t max_count,
                     std::string_view form, std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kList,
          .origin = origin,
          .min_count = min_count,
          .max_count = max_count,
          .detail = form,
          .about = about};
}
constexpr Field content(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view part,
                        std::string_view about = {}) {
  return {.name = name, .forms = forms, .kind = FieldKind::kContent, .origin = origin, .about = about, .part = part};
}
constexpr Field choice(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view words,
                       std::string_view part, std::string_view about = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kChoice,
          .origin = origin,
          .detail = words,
          .about = about,
          .part = part};
}
constexpr Field schema(std::string_view name, uint64_t forms, FieldOrigin origin, int64_t max_bytes,
                       std::string_view about = {}) {
  return {.name = name, .forms = forms, .kind = FieldKind::kSchema, .origin = origin, .max = max_bytes, .about = about};
}
constexpr Field ignored(std::string_view name, uint64_t forms, FieldOrigin origin) {
  return {.name = name, .forms = forms, .kind = FieldKind::kIgnored, .origin = origin};
}
// `neutral`: a value that changes nothing, beside the empty ones.
constexpr Field refused(std::string_view name, uint64_t forms, FieldOrigin origin, std::string_view reason,
                        std::string_view neutral = {}) {
  return {.name = name,
          .forms = forms,
          .kind = FieldKind::kRefused,
          .origin = origin,
          .detail = reason,
          .standard = neutral};
}
constexpr Field required(Field field) {
  field.required = true;
  return field;
}

}  // namespace rows

// A name that the table has, or the program does not compile. Several rows may have one name, for different forms.
template <const auto& kTable>
struct FieldName {
  size_t first = 0;
  consteval FieldName(const char* name) {  // NOLINT(google-explicit-constructor)
    while (kTable[first].name != name) ++first;
  }
  // Requires: the form has such a field.
  const Field& in(uint64_t form) const {
    for (size_t k = first; k < std::size(kTable); ++k)
      if ((kTable[k].forms & form) != 0 && kTable[k].name == kTable[first].name) return kTable[k];
    LK_CHECK(false, "form {:#x} has no field \"{}\"", form, kTable[first].name);
  }
};

// By kind: kFlag; kNumber; kText, kPattern, kWord and the word of kChoice; kTexts; kInteger and kCount.
void read_field(JsonFields& fields, const Field& field, bool& out);
void read_field(JsonFields& fields, const Field& field, double& out);
void read_field(JsonFields& fields, const Field& field, std::string& out);
void read_field(JsonFields& fields, const Field& field, std::vector<std::string>& out);
void read_field(JsonFields& fields, const Field& field, int& out);
void read_field(JsonFields& fields, const Field& field, int64_t& out);
// Whether the value is the one that the field has without being there.
bool is_standard(const Field& field, const boost::json::value& value);
// kBiases, of tokens below vocab_size.
void read_biases(JsonFields& fields, const Field& field, int64_t vocab_size,
                 std::vector<std::pair<int32_t, float>>& out);

// Reads one object by the rows of its form. A field that is read, refused or ignored is known; others are unknown.
template <const auto& kTable>
class FormFields : public JsonFields {
 public:
  using Name = FieldName<kTable>;

  FormFields(const boost::json::object& object, uint64_t form, std::string where)
      : JsonFields(object, std::move(where)), form_(form) {}
  FormFields(const boost::json::object& object, uint64_t form, std::string path, JsonErrors& errors)
      : JsonFields(object, std::move(path), errors), form_(form) {}

  const Field& row(Name name) const { return name.in(form_); }
  template <class T>
  void read(Name name, T& out) {
    read_field(*this, row(name), out);
  }
  // Each of whose tokens is below vocab_size.
  void read(Name name, std::vector<int32_t>& out, int64_t vocab_size) {
    const Field& field = row(name);
    read_tokens(field.name, out, vocab_size, static_cast<size_t>(field.max_count));
  }
  void read(Name name, std::vector<std::pair<int32_t, float>>& out, int64_t vocab_size) {
    read_biases(*this, row(name), vocab_size, out);
  }
  const boost::json::value* find(Name name) { return JsonFields::find(row(name).name); }
  const boost::json::object* object(Name name) { return JsonFields::object(row(name).name); }
  const boost::json::array* array(Name name) {
    return JsonFields::array(row(name).name, static_cast<size_t>(row(name).max_count));
  }
  // What the form says of fields that are neither read nor unknown.
  void refuse_others() {
    for (const Field& field : kTable) {
      if (!(field.forms & form_)) continue;
      if (field.kind == FieldKind::kRefused) {
        const boost::json::value* value = JsonFields::find(field.name);
        if (value != nullptr && !is_standard(field, *value)) refuse(field.name, field.detail);
      } else if (field.kind == FieldKind::kIgnored && JsonFields::find(field.name) != nullptr) {
        ignored_.push_back(path(field.name));
      }
    }
  }
  // Those of them that are there and have no meaning, by their paths.
  const std::vector<std::string>& ignored() const { return ignored_; }

 private:
  uint64_t form_;
  std::vector<std::string> ignored_;
};

}  // namespace lk
