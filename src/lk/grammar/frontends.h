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

// The regular expression of a JSON Schema "format"; empty if unknown.
std::string_view format_pattern(std::string_view name);

}  // namespace lk::grammar
