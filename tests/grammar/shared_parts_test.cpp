// SPDX-License-Identifier: Apache-2.0
// Expressions whose parts are shared, and what has exponentially many texts: compiled, or refused within the limits,
// by walks that meet each part once.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "grammar/grammar_test_util.h"
#include "lk/grammar/automaton.h"

namespace lk {
namespace {

using namespace grammar;
using namespace grammar_testing;
using testing::HasSubstr;

// x, then `combine(x, x)` of that, and so on: as a tree, 2^60 parts.
template <class Combine>
Result<Automaton> build_doubled(const Combine& combine) {
  Ir ir;
  Expr part = ir.literal("ab");
  for (int level = 0; level < 60; ++level) part = combine(ir, part);
  const RuleId root = ir.add_rule("root");
  ir.define(root, part);
  Budget budget{GrammarLimits{}};
  return build_automaton(ir, root, budget);
}

TEST(SharedParts, AreWalkedOnceAndWrittenOutWithinTheLimits) {
  const auto sequence = build_doubled([](Ir& ir, Expr x) { return ir.seq({x, x}); });
  EXPECT_THAT(sequence.status().message(), HasSubstr("too large"));
  const auto choice = build_doubled([](Ir& ir, Expr x) { return ir.alt({x, x}); });
  EXPECT_THAT(choice.status().message(), HasSubstr("too large"));
  const auto graph = build_doubled([](Ir& ir, Expr x) { return ir.graph(3, {{0, 1, x}, {1, 2, x}}); });
  EXPECT_THAT(graph.status().message(), HasSubstr("too large"));
  const auto repeated = build_doubled([](Ir& ir, Expr x) { return ir.repeat(ir.seq({x, x}), 1, 100'000); });
  EXPECT_THAT(repeated.status().message(), HasSubstr("too large"));
}

// Rules that each call the next one twice are calls, so small.
TEST(SharedParts, RulesAreCalledInsteadWhenTheyAreLarge) {
  std::string text = "root ::= a0\n";
  for (int k = 0; k < 60; ++k) text += fmt::format("a{} ::= \"(\" a{} \")\" | a{} \"-\"\n", k, k + 1, k + 1);
  text += "a60 ::= \"x\"\n";
  const auto grammar = compile(ebnf_spec(text), byte_vocabulary());
  ASSERT_NE(grammar, nullptr);
  EXPECT_TRUE(matches(grammar, std::string(60, '(') + "x" + std::string(60, ')')));
  EXPECT_TRUE(matches(grammar, "x" + std::string(60, '-')));
  EXPECT_FALSE(matches(grammar, "x" + std::string(59, '-')));
}

// {"name": "f", "parameters": ...} with keys k0, k1, ..., of which only `required` must be there.
std::string function_of(int keys, const std::string& required = "") {
  std::string properties;
  for (int k = 0; k < keys; ++k)
    properties += fmt::format(R"({}"k{}": {{"type": "string", "maxLength": 3}})", k == 0 ? "" : ", ", k);
  return fmt::format(R"({{"type": "object", "properties": {{{}}}, "required": [{}], "additionalProperties": false}})",
                     properties, required);
}

TEST(SharedParts, ManyOptionalKeysOfACall) {
  for (const int keys : {40, 300}) {
    const GrammarSpec spec{
        GrammarSpec::Kind::kPythonCalls, fmt::format(R"([{{"name": "f", "parameters": {}}}])", function_of(keys)), {}};
    const auto grammar = compile(spec, byte_vocabulary());
    ASSERT_NE(grammar, nullptr);
    std::string all, odd;
    for (int k = 0; k < keys; ++k) {
      all += fmt::format("{}k{}=\"v\"", k == 0 ? "" : ", ", k);
      if (k % 2 == 1) odd += fmt::format("{}k{}=\"v\"", k == 1 ? "" : ",", k);
    }
    EXPECT_TRUE(matches(grammar, "[f()]"));
    EXPECT_TRUE(matches(grammar, "[f(" + all + ")]"));
    EXPECT_TRUE(matches(grammar, "[f(" + odd + ")]"));
    EXPECT_TRUE(matches(grammar, "[f(k39=\"v\")]"));
    EXPECT_EQ(fit(grammar, "[f(, "), Fit::kNo);
    EXPECT_EQ(fit(grammar, "[f(k3=\"v\", k2="), Fit::kNo);
    EXPECT_EQ(fit(grammar, "[f(k3=\"v\", )"), Fit::kNo);
  }
  const GrammarSpec required{GrammarSpec::Kind::kPythonCalls,
                             fmt::format(R"([{{"name": "f", "parameters": {}}}])", function_of(40, R"("k20")")),
                             {}};
  const auto grammar = compile(required, byte_vocabulary());
  ASSERT_NE(grammar, nullptr);
  EXPECT_TRUE(matches(grammar, "[f(k20=\"v\")]"));
  EXPECT_TRUE(matches(grammar, "[f(k1=\"v\", k20=\"v\", k39=\"\")]"));
  EXPECT_EQ(fit(grammar, "[f()"), Fit::kNo);
  EXPECT_EQ(fit(grammar, "[f(k21="), Fit::kNo);
}

TEST(SharedParts, ManyOptionalPropertiesOfASchema) {
  for (const int keys : {40, 300}) {
    const auto grammar = compile(schema_spec(function_of(keys)), byte_vocabulary());
    ASSERT_NE(grammar, nullptr);
    EXPECT_TRUE(matches(grammar, "{}"));
    EXPECT_TRUE(matches(grammar, R"({"k1":"v","k39":"v"})"));
    EXPECT_EQ(fit(grammar, R"({"k3":"v","k2")"), Fit::kNo);
  }
}

TEST(SharedParts, ManyOptionalPartsOfAGrammar) {
  std::string lark = "start:", ebnf = "root ::=", regex;
  for (int k = 0; k < 40; ++k) {
    lark += fmt::format(" [\"k{}=\" V]", k);
    ebnf += fmt::format(" (\"k{}=\" v)?", k);
    regex += fmt::format("(k{}=[a-z]+;)?", k);
  }
  lark += "\nV: /[a-z]+;/\n";
  ebnf += "\nv ::= [a-z]+ \";\"\n";
  for (const GrammarSpec& spec :
       {GrammarSpec{GrammarSpec::Kind::kLark, lark, {}}, ebnf_spec(ebnf), regex_spec(regex)}) {
    const auto grammar = compile(spec, byte_vocabulary());
    ASSERT_NE(grammar, nullptr);
    EXPECT_TRUE(matches(grammar, ""));
    EXPECT_TRUE(matches(grammar, "k2=a;k39=b;"));
    EXPECT_EQ(fit(grammar, "k3=a;k2="), Fit::kNo);
  }
}

}  // namespace
}  // namespace lk
