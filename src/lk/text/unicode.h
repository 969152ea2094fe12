// SPDX-License-Identifier: Apache-2.0
// The character classes of the `tokenizers` package, and Unicode normalisation.
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
// As Unicode 9, the version of the package's normaliser: newer characters are left alone. kInvalidArgument for more
// than 1024 combining marks on one character.
Result<std::string> normalize(std::string_view text, Form form);

}  // namespace lk::unicode
