// SPDX-License-Identifier: Apache-2.0
// UTF-8: the one validator, and walking. Overlong forms, surrogates and what lies above U+10FFFF are not UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lk::utf8 {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Length in bytes of the character whose first byte is `lead`. Requires: valid UTF-8.
inline size_t char_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The code point at text[pos]. Requires: valid UTF-8, pos at the start of a character.
uint32_t decode(std::string_view text, size_t pos);
// Start of the character that ends at `end`. Requires: valid UTF-8, end > 0.
size_t previous_start(std::string_view text, size_t end);
void append(std::string& out, uint32_t code_point);

// Offset of the first byte that is not valid UTF-8; nullopt if all is.
std::optional<size_t> find_invalid(std::string_view bytes);

// Appends `bytes` to `out`, each maximal ill-formed part replaced by U+FFFD. With `final` false, a
// tail that may still become a character is left: returns the number of bytes used.
size_t append_lossy(std::string& out, std::string_view bytes, bool final);
inline bool is_valid(std::string_view bytes) { return !find_invalid(bytes); }

}  // namespace lk::utf8
