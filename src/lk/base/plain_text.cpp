// SPDX-License-Identifier: Apache-2.0
#include "lk/base/plain_text.h"

#include "lk/base/utf8.h"

namespace lk {
namespace {

// C0, DEL and C1 (U+0080 to U+009F, which some terminals obey). Requires: one character in valid UTF-8.
bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7F;
  return first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

}  // namespace

bool is_plain_text(std::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes || !utf8::is_valid(text)) return false;
  for (size_t i = 0; i < text.size(); i += utf8::char_length(text[i]))
    if (is_control(text.substr(i, utf8::char_length(text[i])))) return false;
  return true;
}

std::string clean_text(std::string_view text, size_t max_bytes) {
  std::string clean;
  while (!text.empty()) {
    const std::optional<size_t> bad = utf8::find_invalid(text.substr(0, 4));
    // Four bytes may cut the next character, never the first.
    const size_t length = bad == 0 ? 0 : utf8::char_length(text[0]);
    const std::string_view piece =
        length > 0 && !is_control(text.substr(0, length)) ? text.substr(0, length) : std::string_view("?");
    if (clean.size() + piece.size() > max_bytes) break;
    clean += piece;
    text.remove_prefix(length > 0 ? length : 1);
  }
  return clean;
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (const char c : text.substr(0, max_bytes)) out += c >= 0x20 && c < 0x7F ? c : '?';
  return text.size() > max_bytes ? out + "..." : out;
}

}  // namespace lk
