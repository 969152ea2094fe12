// SPDX-License-Identifier: Apache-2.0
// EBNF grammars against hand-written recognisers; ambiguous ones against all texts up to a length.
#include <gmock/gmock.h>

#include <functional>
#include <set>

#include "grammar/grammar_test_util.h"

namespace lk {
namespace {

using namespace grammar_testing;
using testing::HasSubstr;

// All texts over `alphabet` up to `length`: the language as `member` says, prefixes as they follow from it (texts up to
// twice the length are looked at for those).
void compare_all(const std::string& grammar_text, const std::string& alphabet, size_t length, size_t longest,
                 const std::function<bool(const std::string&)>& member) {
  const auto grammar = compile(ebnf_spec(grammar_text), byte_vocabulary());
  ASSERT_NE(grammar, nullptr);
  std::set<std::string> members, prefixes;
  std::vector<std::string> texts{""};
  for (size_t k = 0; k < texts.size(); ++k) {
    const std::string text = texts[k];
    if (member(text)) {
      members.insert(text);
      for (size_t n = 0; n <= text.size(); ++n) prefixes.insert(text.substr(0, n));
    }
    if (text.size() < longest) {
      for (const char c : alphabet) texts.push_back(text + c);
    }
  }
  for (const std::string& text : texts) {
    if (text.size() > length) continue;
    const Fit expected = members.contains(text) ? Fit::kWhole : prefixes.contains(text) ? Fit::kPrefix : Fit::kNo;
    ASSERT_EQ(fit(grammar, text), expected) << grammar_text << " on \"" << text << "\"";
  }
}

bool balanced(const std::string& text) {
  int depth = 0;
  for (const char c : text) {
    depth += c == '(' ? 1 : -1;
    if (depth < 0) return false;
  }
  return depth == 0;
}

TEST(Ebnf, RecursionAgreesWithAllShortTexts) {
  compare_all("root ::= (\"(\" root \")\")*", "()", 6, 12, balanced);
  compare_all("root ::= \"(\" root \")\" root | \"\"", "()", 6, 12, balanced);
  const auto palindrome = [](const std::string& t) { return std::equal(t.begin(), t.end(), t.rbegin()); };
  compare_all("root ::= \"a\" root \"a\" | \"b\" root \"b\" | [ab]?", "ab", 6, 12, palindrome);
  // Two rules that begin alike at every level: a set of stacks would double with each "a".
  compare_all("root ::= x | y\nx ::= \"a\" root \"b\" | \"d\"\ny ::= \"a\" root \"c\" | \"d\"", "abcd", 4, 9,
              [](const std::string& t) {
                const size_t n = t.find('d');
                if (n == std::string::npos || t.size() != 2 * n + 1) return false;
                for (size_t k = 0; k < t.size(); ++k) {
                  if (k < n ? t[k] != 'a' : k > n && t[k] != 'b' && t[k] != 'c') return false;
                }
                return true;
              });
  // Ambiguous counting: a^n c b^m with m <= n.
  compare_all("root ::= \"a\"* r\nr ::= \"a\" r \"b\" | \"c\"", "abc", 6, 11, [](const std::string& t) {
    const size_t c = t.find('c');
    if (c == std::string::npos || t.find_first_not_of('a') != c || t.find_first_not_of('b', c + 1) != std::string::npos)
      return false;
    return t.size() - c - 1 <= c;
  });
  // Rules that may be empty, in front of and behind others.
  compare_all("root ::= e s e t\ne ::= \"x\"?\ns ::= e \"a\" s | \"b\"\nt ::= e e", "xab", 6, 8,
              [](const std::string& t) {
                const size_t b = t.find('b');
                if (b == std::string::npos) return false;
                const std::string head = t.substr(0, b), tail = t.substr(b + 1);
                if (tail.size() > 3 || tail.find_first_not_of('x') != std::string::npos) return false;
                // Before b: x? (x? a)* with one more x in front.
                size_t x = 0;
                bool first = true;
                for (const char c : head) {
                  if (c == 'b') return false;
                  if (c == 'x') {
                    ++x;
                  } else {
                    if (x > (first ? 2u : 1u)) return false;
                    x = 0;
                    first = false;
                  }
                }
                return x <= (first ? 1u : 0u);
              });
}

TEST(Ebnf, LongRightRecursionAndDeepAmbiguityStayCheap) {
  const auto list =
      compile(ebnf_spec("root ::= item rest\nrest ::= \"\" | \",\" root\nitem ::= [a-z]+"), byte_vocabulary());
  std::string text = "a";
  for (int k = 0; k < 5000; ++k) text += ",b";
  EXPECT_TRUE(matches(list, text)) << "a list is not nesting";
  const auto twins = compile(
      ebnf_spec("root ::= x | y\nx ::= \"a\" root \"b\" | \"d\"\ny ::= \"a\" root \"c\" | \"d\""), byte_vocabulary());
  EXPECT_TRUE(matches(twins, std::string(100, 'a') + "d" + std::string(100, 'c')));
  EXPECT_EQ(fit(twins, std::string(1000, 'a')), Fit::kNo) << "nested deeper than the limit";
}

TEST(Ebnf, RefusesWhatWouldBeSlowAtEveryStep) {
  std::string many = "e ::= \"(\" e \")\" | \"\"\nroot ::= \"a\"";
  for (int k = 0; k < 20'000; ++k) many += " e";
  EXPECT_THAT(compile_error(ebnf_spec(many)), HasSubstr("too complex"));
  std::string chain = "root ::= r0";
  for (int k = 0; k < 3000; ++k)
    chain += "\nr" + std::to_string(k) + " ::= r" + std::to_string(k + 1) + " r" + std::to_string(k + 1);
  EXPECT_THAT(compile_error(ebnf_spec(chain + "\nr3000 ::= \"a\"")), HasSubstr("no text"))
      << "more open calls than the limit";
}

TEST(Ebnf, SyntaxOfTheDialect) {
  const auto grammar = compile(ebnf_spec(R"x(# arithmetic
root  ::= expr "\n"?
expr ::= term ([-+*/] term)*   # left to right
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z_] [a-z0-9_]* ws
num ::=
    [0-9]{1,3} ws
ws ::= [ \t]*
)x"),
                               byte_vocabulary());
  for (const char* text : {"1", "a1+2", "(a +12)*c", "((1))\n"}) EXPECT_TRUE(matches(grammar, text)) << text;
  for (const char* text : {"", "1234", "1+", "(1", " 1", "é"}) EXPECT_FALSE(matches(grammar, text)) << text;
  const auto escapes =
      compile(ebnf_spec(R"(root ::= "\"\\\x41\u00e9\U0001F600" [^\]\x00-\x1F"] [é-ü\-] . 'q')"), byte_vocabulary());
  EXPECT_TRUE(matches(escapes, "\"\\Aé😀xê☃q"));
  EXPECT_FALSE(matches(escapes, "\"\\Aé😀]ê☃q"));
  const auto typical = compile(
      ebnf_spec(
          "root ::= select_statement\nselect_statement ::= \"SELECT \" column \" from \" table \" where \" condition\n"
          "column ::= \"col_1 \" | \"col_2 \"\ntable ::= \"table_1 \" | \"table_2 \"\n"
          "condition ::= column \"= \" number\nnumber ::= \"1 \" | \"2 \"\n"),
      byte_vocabulary());
  EXPECT_TRUE(matches(typical, "SELECT col_1  from table_2  where col_2 = 1 "));
}

TEST(Ebnf, RefusesByName) {
  const auto error = [](const char* text) { return compile_error(ebnf_spec(text)); };
  EXPECT_THAT(error("root ::= root \"a\" | \"a\""), HasSubstr("rule \"root\" is left-recursive"));
  EXPECT_THAT(error("root ::= x\nx ::= y \"a\" | \"b\"\ny ::= \"\" x \"c\""), HasSubstr("left-recursive"));
  EXPECT_THAT(error("root ::= e root \"a\" | \"b\"\ne ::= \"x\"*"), HasSubstr("left-recursive"))
      << "hidden behind a rule that may be empty";
  EXPECT_THAT(error("root ::= x"), HasSubstr("rule \"x\" is not defined"));
  EXPECT_THAT(error("x ::= \"a\""), HasSubstr("no rule \"root\""));
  EXPECT_THAT(error("root ::= \"a"), HasSubstr("line 1: a string is not closed"));
  EXPECT_THAT(error("root ::= \"a\"\nroot ::= \"b\""), HasSubstr("line 2: rule \"root\" is defined twice"));
  EXPECT_THAT(error("root ::= (\"a\""), HasSubstr("not closed"));
  EXPECT_THAT(error("root ::= \"a\")"), HasSubstr("unmatched"));
  EXPECT_THAT(error("root ::= \"\\q\""), HasSubstr("escape"));
  EXPECT_THAT(error("start: \"a\""), HasSubstr("expected \"::=\""));
  EXPECT_THAT(error("root ::= \"a\" root"), HasSubstr("no text"));
  EXPECT_THAT(error(""), HasSubstr("root"));
  EXPECT_THAT(error("root ::= \"\\"), HasSubstr("escape"));
}

}  // namespace
}  // namespace lk
