// SPDX-License-Identifier: Apache-2.0
// The "normalizer" section of tokenizer.json.
// Thread safety: immutable after parse.
#pragma once

#include <memory>
#include <vector>

#include "lk/text/growth.h"
#include "lk/text/json_view.h"
#include "lk/text/pieces.h"

namespace lk {

// Replace, as a normalizer and as a decoder.
struct ReplaceRule {
  Regex pattern;
  std::string content;
  static Result<ReplaceRule> parse(const JsonView& json);
  Growth growth() const;
};

// {"String": "..."} or {"Regex": "..."}
Result<Regex> parse_pattern(const JsonView& json);

// The characters of the byte-level alphabet: byte b is written as kByteChars[b], at most U+0143.
const std::string& byte_char(unsigned char byte);
// The byte written as code_point, or -1.
int char_byte(uint32_t code_point);

class Normalizer {
 public:
  // Null for a null section. Nested sequences are allowed to the depth the JSON parser allows. kUnsupported for one
  // that multiplies texts.
  static Result<std::unique_ptr<const Normalizer>> parse(const JsonView& json);
  virtual ~Normalizer() = default;
  virtual Status apply(NormalizedText& text, WorkBudget& budget) const = 0;
  virtual Growth growth() const { return {}; }
};

}  // namespace lk
