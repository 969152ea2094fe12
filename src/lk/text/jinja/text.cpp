// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/text.h"
#include "lk/base/utf8.h"

#include <unicode/locid.h>
#include <unicode/stringoptions.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include <algorithm>

namespace lk::jinja {
namespace {

icu::UnicodeString to_icu(std::string_view text) {
  return icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

std::string from_icu(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

// The full title-case mapping of one code point ("ß" gives "Ss").
std::string title_one(char32_t c) {
  icu::UnicodeString text(static_cast<UChar32>(c));
  text.toTitle(nullptr, icu::Locale::getRoot(), U_TITLECASE_WHOLE_STRING | U_TITLECASE_NO_BREAK_ADJUSTMENT);
  return from_icu(text);
}

bool is_cased(char32_t c) {
  const auto point = static_cast<UChar32>(c);
  return u_hasBinaryProperty(point, UCHAR_LOWERCASE) || u_hasBinaryProperty(point, UCHAR_UPPERCASE) ||
         u_charType(point) == U_TITLECASE_LETTER;
}

bool all_cased_have(std::string_view text, UProperty wanted, UProperty other) {
  bool found = false;
  for (size_t pos = 0; pos < text.size();) {
    const auto c = static_cast<UChar32>(next_code_point(text, pos));
    if (u_hasBinaryProperty(c, other) || u_charType(c) == U_TITLECASE_LETTER) return false;
    found = found || u_hasBinaryProperty(c, wanted);
  }
  return found;
}

}  // namespace

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

char32_t next_code_point(std::string_view text, size_t& pos) {
  const size_t at = pos, length = utf8::char_length(text[pos]);
  if (pos + length > text.size()) return static_cast<unsigned char>(text[pos++]);
  pos += length;
  return utf8::decode(text, at);
}

int64_t num_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

size_t byte_offset(std::string_view text, int64_t index) {
  size_t pos = 0;
  for (; index > 0 && pos < text.size(); --index) {
    do ++pos;
    while (pos < text.size() && (text[pos] & 0xC0) == 0x80);
  }
  return pos;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_line_break(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (u_charType(static_cast<UChar32>(c))) {
    case U_UNASSIGNED:
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_PRIVATE_USE_CHAR:
    case U_SURROGATE:
    case U_SPACE_SEPARATOR:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
      return false;
    default:
      return true;
  }
}

std::string upper(std::string_view text) {
  if (!is_ascii(text)) return from_icu(to_icu(text).toUpper(icu::Locale::getRoot()));
  std::string out(text);
  for (char& c : out) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
  return out;
}

std::string lower(std::string_view text) {
  if (!is_ascii(text)) return from_icu(to_icu(text).toLower(icu::Locale::getRoot()));
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  size_t pos = 0;
  const char32_t first = next_code_point(text, pos);
  // Lower the whole text: a final sigma depends on the letters before it.
  const std::string lowered = lower(text);
  size_t rest = 0;
  const std::string lowered_first = lower(text.substr(0, pos));
  rest = lowered_first.size();
  return title_one(first) + lowered.substr(rest);
}

std::string title(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    if (!is_cased(next_code_point(text, pos))) {
      out += text.substr(begin, pos - begin);
      continue;
    }
    size_t end = pos;
    while (end < text.size()) {
      size_t next = end;
      if (!is_cased(next_code_point(text, next))) break;
      end = next;
    }
    out += capitalize(text.substr(begin, end - begin));
    pos = end;
  }
  return out;
}

bool is_upper(std::string_view text) { return all_cased_have(text, UCHAR_UPPERCASE, UCHAR_LOWERCASE); }
bool is_lower(std::string_view text) { return all_cased_have(text, UCHAR_LOWERCASE, UCHAR_UPPERCASE); }

std::string_view strip(std::string_view text, bool left, bool right, bool has_chars, std::string_view chars) {
  // A membership table would pay only for long `chars`; sets here are a few characters.
  const auto drops = [&](size_t begin, size_t end) {
    const std::string_view one = text.substr(begin, end - begin);
    size_t pos = 0;
    return has_chars ? chars.find(one) != std::string_view::npos : is_space(next_code_point(one, pos));
  };
  size_t begin = 0;
  size_t end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    next_code_point(text, next);
    if (!drops(begin, next)) break;
    begin = next;
  }
  while (right && begin < end) {
    size_t last = end - 1;
    while (last > begin && (text[last] & 0xC0) == 0x80) --last;
    if (!drops(last, end)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(text, pos);
    if (!is_line_break(c)) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.push_back(text.substr(begin, (keep_ends ? pos : at) - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

}  // namespace lk::jinja
