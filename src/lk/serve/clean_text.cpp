// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/clean_text.h"

namespace lk {
namespace {

// Bytes of the well-formed UTF-8 character at the start of `text`, 0 when there is none.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF0 && first <= 0xF4  ? 4
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xC2 && first < 0xE0 ? 2
                                                        : 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool outside =
      (first == 0xED && second >= 0xA0) || (first == 0xF4 && second >= 0x90);  // surrogates, above U+10FFFF
  return overlong || outside ? 0 : length;
}

// C0, DEL and C1 (U+0080 to U+009F, which some terminals obey).
bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7F;
  return first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

}  // namespace

std::string clean_text(std::string_view text, size_t max_bytes) {
  std::string clean;
  while (!text.empty()) {
    const size_t length = character_length(text);
    const std::string_view piece =
        length > 0 && !is_control(text.substr(0, length)) ? text.substr(0, length) : std::string_view("?");
    if (clean.size() + piece.size() > max_bytes) break;
    clean += piece;
    text.remove_prefix(length > 0 ? length : 1);
  }
  return clean;
}

}  // namespace lk
