// SPDX-License-Identifier: Apache-2.0
#include "lk/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <array>
#include <memory>

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

// Bytes of the longest prefix of `bytes` that is a character or could become one, and whether it is
// one.
struct Prefix {
  size_t length;
  bool complete;
};
Prefix scan_char(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {1, true};
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // bounds of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {i, false};
    if (at(i) < low || at(i) > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
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

uint32_t decode(std::string_view text, size_t pos) {
  const auto at = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[pos + i])); };
  switch (char_length(text[pos])) {
    case 1:
      return at(0);
    case 2:
      return (at(0) & 0x1F) << 6 | (at(1) & 0x3F);
    case 3:
      return (at(0) & 0x0F) << 12 | (at(1) & 0x3F) << 6 | (at(2) & 0x3F);
    default:
      return (at(0) & 0x07) << 18 | (at(1) & 0x3F) << 12 | (at(2) & 0x3F) << 6 | (at(3) & 0x3F);
  }
}

size_t previous_start(std::string_view text, size_t end) {
  size_t pos = end - 1;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

void append(std::string& out, uint32_t code_point) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

std::optional<size_t> find_invalid(std::string_view bytes) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    if (static_cast<unsigned char>(bytes[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Prefix prefix = scan_char(bytes.substr(pos));
    if (!prefix.complete) return pos;
    pos += prefix.length;
  }
  return std::nullopt;
}

size_t append_lossy(std::string& out, std::string_view bytes, bool final) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    const Prefix prefix = scan_char(bytes.substr(pos));
    if (prefix.complete) {
      out.append(bytes.substr(pos, prefix.length));
    } else {
      // A lead byte alone at the end may still grow; a byte that never leads may not.
      const auto lead = static_cast<unsigned char>(bytes[pos]);
      const bool can_grow = pos + prefix.length == bytes.size() && lead >= 0xC2 && lead <= 0xF4;
      if (can_grow && !final) return pos;
      out.append(kReplacement);
    }
    pos += prefix.length;
  }
  return pos;
}

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
    if (mapping.upper == code_point) return append(out, mapping.lower);
  }
  append(out, static_cast<uint32_t>(u_tolower(static_cast<UChar32>(code_point))));
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
