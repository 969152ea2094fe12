// SPDX-License-Identifier: Apache-2.0
#include "lk/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <array>
#include <memory>

#include "lk/base/utf8.h"

namespace lk::unicode {
namespace {

#include "lk/text/unicode_tables.inc"

bool contains(std::span<const CodePointRange> ranges, uint32_t code_point) {
  const auto it = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                   [](uint32_t c, const CodePointRange& range) { return c < range.first; });
  return it != ranges.begin() && code_point <= std::prev(it)->last;
}

std::string property_key(std::string_view name) {
  std::string key;
  for (const char c : name) {
    if (c == ' ' || c == '_' || c == '-') continue;
    key += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  }
  return key;
}

// ICU puts the marks on one character in order by moving each past those before it: in time that is quadratic in their
// number.
Status check_marks(std::string_view text) {
  constexpr int kMaxMarks = 1024;  // Unicode's stream-safe texts have 30
  int marks = 0;
  for (size_t at = 0; at < text.size(); at += utf8::char_length(text[at])) {
    const uint32_t c = utf8::decode(text, at);
    const bool reordered =
        c >= 0x300 && u_getIntPropertyValue(static_cast<UChar32>(c), UCHAR_LEAD_CANONICAL_COMBINING_CLASS) != 0;
    marks = reordered ? marks + 1 : 0;
    if (marks > kMaxMarks)
      return invalid_argument("the text has more than {} combining marks on one character, at byte {}", kMaxMarks, at);
  }
  return {};
}

struct Normalizers {
  std::array<std::unique_ptr<icu::FilteredNormalizer2>, 4> forms;
  icu::UnicodeSet assigned;
  bool ok = false;

  Normalizers() {
    UErrorCode error = U_ZERO_ERROR;
    assigned.applyPattern(icu::UnicodeString(u"[:age=9.0:]"), error);
    assigned.freeze();
    const icu::Normalizer2* base[4] = {icu::Normalizer2::getNFCInstance(error), icu::Normalizer2::getNFDInstance(error),
                                       icu::Normalizer2::getNFKCInstance(error),
                                       icu::Normalizer2::getNFKDInstance(error)};
    ok = U_SUCCESS(error);
    for (size_t k = 0; ok && k < 4; ++k) {
      forms[k] = std::make_unique<icu::FilteredNormalizer2>(*base[k], assigned);
    }
  }
};

}  // namespace

bool is_space(uint32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= 9 && code_point <= 13);
  return contains(kSpaceRanges, code_point);
}
bool is_word(uint32_t code_point) { return contains(kWordRanges, code_point); }
bool is_numeric(uint32_t code_point) { return contains(kNumericRanges, code_point); }
bool is_punctuation(uint32_t code_point) { return contains(kPunctuationRanges, code_point); }
bool is_mark(uint32_t code_point) { return contains(kMarkRanges, code_point); }

void append_lower(std::string& out, uint32_t code_point) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point >= 'A' && code_point <= 'Z' ? code_point + 32 : code_point);
    return;
  }
  if (code_point == 0x130) {  // the only character with a two-character lower case
    out += "i\xCC\x87";
    return;
  }
  for (const CaseMapping& mapping : kLowerAdditions) {
    if (mapping.upper == code_point) return utf8::append(out, mapping.lower);
  }
  utf8::append(out, static_cast<uint32_t>(u_tolower(static_cast<UChar32>(code_point))));
}

const RegexProperty* find_property(std::string_view name) {
  std::string key = property_key(name);
  static constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
      {"letter", "l"}, {"mark", "m"}, {"number", "n"}, {"punctuation", "p"}, {"symbol", "s"}, {"separator", "z"}};
  for (const auto& [long_name, short_name] : kLongNames) {
    if (key == long_name) key = short_name;
  }
  for (const RegexProperty& property : kRegexProperties) {
    if (property_key(property.name) == key) return &property;
  }
  return nullptr;
}

std::span<const CodePointRange> space_ranges() { return kSpaceRanges; }

Result<std::string> normalize(std::string_view text, Form form) {
  const bool ascii = std::none_of(text.begin(), text.end(), [](char c) { return static_cast<signed char>(c) < 0; });
  if (ascii) return std::string(text);  // every form leaves ASCII alone
  LK_RETURN_IF_ERROR(check_marks(text));
  static const Normalizers normalizers;
  if (!normalizers.ok) return internal_error("ICU has no normalisation data");
  UErrorCode error = U_ZERO_ERROR;
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  // FilteredNormalizer2 in UTF-8 calls the filtered normaliser span by span; ICU sizes are int32,
  // checked by callers.
  normalizers.forms[static_cast<size_t>(form)]->normalizeUTF8(
      0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr, error);
  if (U_FAILURE(error)) return internal_error("Unicode normalisation failed: {}", u_errorName(error));
  return out;
}

}  // namespace lk::unicode
