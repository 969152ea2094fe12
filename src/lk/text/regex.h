// SPDX-License-Identifier: Apache-2.0
// Regular expressions of tokenizer.json: written for Oniguruma (Ruby syntax), run by PCRE2.
// translate_regex rewrites what differs (\s, \h, \p{..} of a newer Unicode, nested classes, ...)
// and refuses by name what it cannot rewrite. Patterns are hostile: compile size, match steps, heap
// and time are all bounded. Thread safety: a Regex is immutable.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/text/work_budget.h"

namespace lk {

// The PCRE2 form of an Oniguruma pattern; kUnsupported names the construct.
Result<std::string> translate_regex(std::string_view pattern);

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
  // kInvalidArgument past a limit.
  Status find_spans(std::string_view text, WorkBudget& budget, std::vector<Span>& spans) const;
  // The same spans one by one, until `take` fails: no list of a text's every character.
  Status each_span(std::string_view text, WorkBudget& budget, const std::function<Status(const Span&)>& take) const;

  const std::string& literal() const { return literal_; }  // empty if a pattern
  size_t min_match_bytes() const;                          // 0: perhaps an empty match

 private:
  struct Code;
  Regex() = default;
  static Result<Regex> build(const std::string& pcre);

  std::shared_ptr<const Code> code_;  // null for a literal
  std::string literal_;
};

}  // namespace lk
