// SPDX-License-Identifier: Apache-2.0
// Classes of ASCII characters, whatever the locale is.
#pragma once

#include <algorithm>
#include <string_view>

namespace lk {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
constexpr bool is_alnum(char c) { return is_letter(c) || is_digit(c); }
constexpr bool is_word_char(char c) { return is_alnum(c) || c == '_'; }

// A name as most languages have them: letters, digits and _, no digit first.
constexpr bool is_identifier(std::string_view text) {
  return !text.empty() && !is_digit(text[0]) && std::ranges::all_of(text, is_word_char);
}

}  // namespace lk
