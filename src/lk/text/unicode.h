// SPDX-License-Identifier: Apache-2.0
// UTF-8 walking, the character classes of the `tokenizers` package, and Unicode normalisation.
// The classes are measured (tools/make_unicode_tables.py), so they do not move with the ICU or
// PCRE2 installed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk::unicode {

struct CodePointRange {
  uint32_t first, last;  // inclusive
};

// A class usable in a regular expression: PCRE2's `base` (may be empty) and more code points.
struct RegexProperty {
  std::string_view name;
  std::string_view base;
  std::span<const CodePointRange> ranges;
};

struct CaseMapping {
  uint32_t upper, lower;
};

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

// Offset of the first byte that is not valid UTF-8 (overlong forms and surrogates are not); nullopt
// if all is.
std::optional<size_t> find_invalid(std::string_view bytes);

// Appends `bytes` to `out`, each maximal ill-formed part replaced by U+FFFD. With `final` false, a
// tail that may still become a character is left: returns the number of bytes used.
size_t append_lossy(std::string& out, std::string_view bytes, bool final);

bool is_space(uint32_t code_point);        // Rust char::is_whitespace
bool is_word(uint32_t code_point);         // \w of the Rust regex crate
bool is_numeric(uint32_t code_point);      // Rust char::is_numeric
bool is_punctuation(uint32_t code_point);  // of the Punctuation pre-tokenizer
bool is_mark(uint32_t code_point);         // of the StripAccents normalizer

// Rust char::to_lowercase: one character at a time, no final sigma.
void append_lower(std::string& out, uint32_t code_point);

// nullptr if unknown. `name` as written in \p{...}; case, spaces, '-' and '_' do not matter. "word"
// is \w.
const RegexProperty* find_property(std::string_view name);
std::span<const CodePointRange> space_ranges();

enum class Form { kNfc, kNfd, kNfkc, kNfkd };
// As Unicode 9, the version of the package's normaliser: newer characters are left alone.
Result<std::string> normalize(std::string_view text, Form form);

}  // namespace lk::unicode
