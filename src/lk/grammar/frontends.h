// SPDX-License-Identifier: Apache-2.0
// The kinds of GrammarSpec, each translated into rules; the result is the root rule.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lk/grammar/automaton.h"
#include "lk/grammar/ir.h"

namespace lk::grammar {

Result<RuleId> translate_schema(Ir& ir, std::string_view json, const GrammarLimits& limits, Budget& budget);
Result<RuleId> translate_ebnf(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget);
Result<RuleId> translate_lark(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget);
Result<RuleId> translate_python_calls(Ir& ir, std::string_view functions, const GrammarLimits& limits, Budget& budget);

// A "format" of JSON Schema that binds texts, all of which have at least one character: those of `head` with one of
// `tail` behind. Both are regular expressions.
struct Format {
  std::string head;
  int64_t max_head;  // characters
  std::string tail = {};
};
const Format* find_format(std::string_view name);  // null: it is an annotation

}  // namespace lk::grammar
