// SPDX-License-Identifier: Apache-2.0
// PythonRegex: the patterns of adapter_config.json, which PEFT hands to Python's `re`, run on
// PCRE2. A pattern whose meaning differs between the two is refused; matching is bounded (hostile
// patterns).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

class PythonRegex {
 public:
  // re.compile(pattern). The error names the pattern and the construct.
  static Result<PythonRegex> compile(const std::string& pattern);

  // re.match(pattern, text): anchored at the start. Fails when the pattern backtracks too much.
  Result<bool> match(std::string_view text) const;
  // re.fullmatch(pattern, text).
  Result<bool> full_match(std::string_view text) const;
  // The named group of re.match(pattern, text); nullopt when there is no match.
  Result<std::optional<std::string>> match_group(std::string_view text, const char* group) const;

 private:
  struct Code;
  PythonRegex() = default;
  Result<bool> run(std::string_view text, uint32_t options) const;
  std::string pattern_;
  std::shared_ptr<const Code> code_;
};

}  // namespace lk
