// SPDX-License-Identifier: Apache-2.0
// Lark grammars and calls in Python's form, against texts that are and are not of them.
#include <gmock/gmock.h>

#include "grammar/grammar_test_util.h"

namespace lk {
namespace {

using namespace grammar_testing;
using testing::HasSubstr;

GrammarSpec lark_spec(std::string text) { return {GrammarSpec::Kind::kLark, std::move(text), {}}; }
GrammarSpec calls_spec(std::string functions) { return {GrammarSpec::Kind::kPythonCalls, std::move(functions), {}}; }

void expect(const GrammarSpec& spec, const std::vector<std::string>& members, const std::vector<std::string>& others) {
  const auto grammar = compile(spec, byte_vocabulary());
  ASSERT_NE(grammar, nullptr);
  for (const std::string& text : members) EXPECT_TRUE(matches(grammar, text)) << spec.text << "\n" << text;
  for (const std::string& text : others) EXPECT_FALSE(matches(grammar, text)) << spec.text << "\n" << text;
}

// The example of OpenAI's guide, but for its names.
TEST(Lark, Arithmetic) {
  expect(lark_spec(R"(
start: expr
expr: term (SP ADD SP term)* -> add
    | term
term: factor (SP MUL SP factor)* -> mul
    | factor
factor: INT
SP: " "
ADD: "+"
MUL: "*"
%import common.INT
)"),
         {"4", "4 + 4", "12 * 3 + 7"}, {"", "4+4", "4 +", "+ 4", "4 + x"});
}

TEST(Lark, RulesMayRefer) {
  expect(lark_spec("start: \"(\" start \")\" | \"x\"  // a comment\n# another"), {"x", "(x)", "((x))"},
         {"", "()", "(x", "x)"});
  expect(lark_spec("?start: list\n!list.2: \"[\" [item (\",\" item)*] \"]\"\nitem: /[a-z]+/ | list\n"),
         {"[]", "[a]", "[a,[b,cd],[]]"}, {"[,]", "[a", "[A]"});
}

TEST(Lark, WhatIsIgnoredMayStandBetween) {
  expect(lark_spec("start: WORD \"=\" NUMBER\n%import common (WORD, NUMBER)\n%ignore \" \"\n"),
         {"a=1", "  ab  = 2.5 ", "x =1e5"}, {"a b=1", "a=1 2", "a=\n1"});
  expect(lark_spec("start: \"a\" B\nB: \"b\" \"b\"\n%import common.WS -> GAP\n%ignore GAP\n"), {"abb", " a \n bb\t"},
         {"a b b"});
}

TEST(Lark, Operators) {
  expect(lark_spec("start: \"a\"~2 \"b\"~1..2 \"c\"{2} \"d\"{0,1} (\"e\" | \"f\")+ \"g\"?"), {"aabccdeg", "aabbccff"},
         {"abccde", "aabbbcce", "aabcce g"});
  expect(lark_spec("start: \"Select\"i \"a\"..\"c\" /x\\/y/ \"\\u00e9\\n\""),
         {"SELECTbx/y\xC3\xA9\n", "selectax/y\xC3\xA9\n"}, {"Selectdx/y\xC3\xA9\n"});
  expect(lark_spec("start: \"a\"\n     | \"b\"\n\n     | \"c\"\n"), {"a", "b", "c"}, {"d", ""});
  expect(lark_spec("start: X\nX: Y | \"-\" Y\nY: /[0-9]/\n"), {"1", "-1"}, {"--1"});
  expect(lark_spec("start: (\"a\"\n  \"b\")*\n"), {"", "ab", "abab"}, {"a"});
}

TEST(Lark, RefusesByName) {
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{
           {"a: \"x\"", "no rule \"start\""},
           {"start: b", "\"b\" is not defined"},
           {"start: \"a\"\nstart: \"b\"", "line 2: \"start\" is defined twice"},
           {"start: X\nX: y\ny: \"a\"", "line 2: a terminal cannot use the rule \"y\""},
           {"start: \"a", "not closed"},
           {"start: (\"a\"", "group is not closed"},
           {"start: \"a\"\n%declare X", "%declare is not supported"},
           {"start: \"a\"\n%import python.NAME", "only of \"common\""},
           {"start: \"a\"\n%import common.MAGIC", "common.MAGIC is not known"},
           {"start: /a(?=b)/", "look-around"},
           {"start: /a/i", "flag \"i\""},
           {"start: _sep{\"a\", \"b\"}\n_sep{x, y}: x (y x)*", "templates"},
           {"start: \"b\"..\"a\"", "range"},
           {"start: \"a\"~3..2", "maximum is below"},
           {"start: \"a\\q\"", "escape \\q"},
           {"start \"a\"", "expected \":\""},
           {"start: \"a\" )", "unexpected \")\""}})
    EXPECT_THAT(compile_error(lark_spec(text)), HasSubstr(words)) << text;
}

TEST(PythonCalls, ArgumentsAreHeldToTheirSchemas) {
  const GrammarSpec spec = calls_spec(R"([
    {"name": "find.city", "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "limit": {"type": "integer"},
      "kind": {"$ref": "#/$defs/Kind"}}, "required": ["limit"], "$defs": {"Kind": {"enum": ["a", "b"]}}}},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
    {"name": "flag", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}, "odd-name": {"type": "integer"}}}}])");
  expect(
      spec,
      {R"([find.city(limit=3)])", R"([find.city(name="Riga", limit=3, kind="a")])", R"([find.city(limit=3,kind="b")])",
       "[now()]", "[flag()]", "[flag(on=true)]"},
      {"[find.city()]", R"([find.city(name="Riga")])", "[find.city(limit=\"3\")]", R"([find.city(limit=3, kind="c")])",
       "[now(x=1)]", "[other()]", "now()", "[now(), now()]", "[flag(odd-name=1)]"});
}

TEST(PythonCalls, RefusesByName) {
  for (const auto& [parameters, words] : std::vector<std::pair<std::string, std::string>>{
           {R"({"oneOf": []})", "\"oneOf\""},
           {R"({"properties": {"a-b": {}}, "required": ["a-b"]})", "f.a-b"},
           {R"({"properties": {"a": {"$ref": "#"}}})", "f.a: the reference \"#\""},
           {R"({"properties": {}, "required": ["a"]})", "\"a\" is required"},
           {R"({"properties": {"a": {"type": "integer", "multipleOf": 0.3}}})", "f.a"}})
    EXPECT_THAT(compile_error(calls_spec(R"([{"name": "f", "parameters": )" + parameters + "}]")), HasSubstr(words))
        << parameters;
}

}  // namespace
}  // namespace lk
