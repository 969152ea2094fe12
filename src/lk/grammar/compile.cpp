// SPDX-License-Identifier: Apache-2.0
#include "lk/base/utf8.h"
#include "lk/grammar/compiled.h"
#include "lk/grammar/frontends.h"
#include "lk/grammar/json_rules.h"
#include "lk/grammar/regex_grammar.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

using namespace grammar;

Result<RuleId> translate_choices(Ir& ir, const std::vector<std::string>& choices) {
  if (choices.empty()) return invalid_argument("choice: the list is empty");
  std::vector<Expr> parts;
  for (size_t k = 0; k < choices.size(); ++k) {
    if (const auto offset = utf8::find_invalid(choices[k]))
      return invalid_argument("choice {}: not valid UTF-8 at byte {}", k, *offset);
    if (choices[k].empty()) return invalid_argument("choice {}: is empty", k);
    parts.push_back(ir.literal(choices[k]));
  }
  const RuleId root = ir.add_rule("choice");
  ir.define(root, ir.alt(std::move(parts)));
  return root;
}

Result<RuleId> translate(Ir& ir, const GrammarSpec& spec, const GrammarLimits& limits, Budget& budget) {
  switch (spec.kind) {
    case GrammarSpec::Kind::kJsonObject: {
      const RuleId root = ir.add_rule("root");
      ir.define(root, JsonRules(ir).any_object());
      return root;
    }
    case GrammarSpec::Kind::kJsonSchema:
      return translate_schema(ir, spec.text, limits, budget);
    case GrammarSpec::Kind::kEbnf:
      return translate_ebnf(ir, spec.text, limits, budget);
    case GrammarSpec::Kind::kLark:
      return translate_lark(ir, spec.text, limits, budget);
    case GrammarSpec::Kind::kPythonCalls:
      return translate_python_calls(ir, spec.text, limits, budget);
    case GrammarSpec::Kind::kChoice:
      return translate_choices(ir, spec.choices);
    case GrammarSpec::Kind::kRegex: {
      LK_ASSIGN_OR_RETURN(const Expr body, parse_regex(ir, spec.text, {.max_depth = limits.max_depth}, budget));
      const RuleId root = ir.add_rule("root");
      ir.define(root, body);
      return root;
    }
  }
  return invalid_argument("an unknown kind of grammar");
}

}  // namespace

Result<std::shared_ptr<const Grammar>> compile_grammar(const GrammarSpec& spec,
                                                       std::shared_ptr<const TokenVocabulary> vocabulary,
                                                       const GrammarLimits& limits) {
  LK_CHECK(vocabulary != nullptr, "a grammar needs a vocabulary");
  int64_t source = static_cast<int64_t>(spec.text.size());
  for (const std::string& choice : spec.choices) source += static_cast<int64_t>(choice.size()) + 1;
  if (source > limits.max_source_bytes)
    return invalid_argument("the grammar has {} bytes, more than {}", source, limits.max_source_bytes);
  Budget budget(limits);
  Ir ir;
  LK_ASSIGN_OR_RETURN(const RuleId root, translate(ir, spec, limits, budget));
  Result<Automaton> automaton = build_automaton(ir, root, budget);
  if (automaton.ok())
    return std::shared_ptr<const Grammar>(
        std::make_shared<Grammar>(std::move(automaton).value(), std::move(vocabulary)));
  constexpr int64_t kLarge = 100;
  const Ir::Count& count = ir.largest_count();
  if (budget.status().code() != StatusCode::kInvalidArgument || count.number < kLarge) return automaton.status();
  return invalid_argument("{}; the largest number in it is {}, of {}", automaton.status().message(), count.number,
                          count.what);
}

}  // namespace lk
