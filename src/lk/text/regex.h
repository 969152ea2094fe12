// SPDX-License-Identifier: Apache-2.0
// Regular expressions of tokenizer.json: written for Oniguruma (Ruby syntax), run by PCRE2.
// translate_regex rewrites what differs (\s, \h, \p{..} of a newer Unicode, nested classes, ...)
// and refuses by name what it cannot rewrite. Patterns are hostile: compile size, match steps, heap
// and time are all bounded. Thread safety: a Regex is immutable; a RegexBudget belongs to one call.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// The PCRE2 form of an Oniguruma pattern; kUnsupported names the construct.
Result<std::string> translate_regex(std::string_view pattern);

// Time that one encode may spend matching: PCRE2 bounds each match, this bounds their sum.
class RegexBudget {
 public:
  explicit RegexBudget(size_t text_bytes);
  bool expired();

 private:
  std::chrono::steady_clock::time_point deadline_;
  uint32_t calls_ = 0;
};

struct Span {
  size_t begin, end;
  bool is_match;
};

class Regex {
 public:
  static Result<Regex> compile(std::string_view pattern);
  static Result<Regex> compile_literal(std::string_view text);

  // Replaces `spans` by the cover of `text`: matches, and the text between them, in order. An empty
  // text has none. Zero-width matches give empty spans, none directly after another match.
  // kResourceExhausted past a limit.
  Status find_spans(std::string_view text, RegexBudget& budget, std::vector<Span>& spans) const;

  const std::string& literal() const { return literal_; }  // empty if a pattern

 private:
  struct Code;
  Regex() = default;
  static Result<Regex> build(const std::string& pcre);

  std::shared_ptr<const Code> code_;  // null for a literal
  std::string literal_;
};

}  // namespace lk
