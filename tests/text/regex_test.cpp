// SPDX-License-Identifier: Apache-2.0
#include "lk/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The spans of `text`, matches in brackets.
std::vector<std::string> spans(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::compile(pattern);
  if (!regex.ok()) return {regex.status().message()};
  WorkBudget budget(text.size());
  std::vector<Span> found;
  EXPECT_TRUE(regex->find_spans(text, budget, found).ok());
  std::vector<std::string> out;
  for (const Span& span : found) {
    const std::string_view part = text.substr(span.begin, span.end - span.begin);
    out.push_back(span.is_match ? fmt::format("[{}]", part) : std::string(part));
  }
  return out;
}

TEST(Regex, FollowsOnigurumaWhereItDiffersFromPcre) {
  EXPECT_THAT(spans(R"(\h+)", "xAf9z"), ElementsAre("x", "[Af9]", "z")) << "hex digits";
  EXPECT_THAT(spans(R"(\s)", "\u180e \u0085"), ElementsAre("\u180e", "[ ]", "[\u0085]")) << "U+180E is no space";
  EXPECT_THAT(spans(R"([a[bc]]+)", "xabc]"), ElementsAre("x", "[abc]", "]")) << "nested set";
  EXPECT_THAT(spans(R"([a-z&&[^aeiou]]+)", "abcde"), ElementsAre("a", "[bcd]", "e")) << "intersection";
  EXPECT_THAT(spans(R"([^\S\n]+)", "a \n b"), ElementsAre("a", "[ ]", "\n", "[ ]", "b"));
  EXPECT_THAT(spans(R"(\v)", "\n\v"), ElementsAre("\n", "[\v]"));
  EXPECT_THAT(spans(R"(a{,2})", "aaa"), ElementsAre("[aa]", "[a]")) << "no lower bound";
  EXPECT_THAT(spans(R"(a(?i)b|c)", "aBaCc"), ElementsAre("[aB]", "[aC]", "c")) << "options hold the alternatives";
  EXPECT_THAT(spans(R"(^b$)", "a\nb\nc"), ElementsAre("a\n", "[b]", "\nc")) << "always by line";
  EXPECT_THAT(spans(R"(\p{L}+)", "\U000105c0x"), ElementsAre("[\U000105c0x]")) << "Unicode 16";
  EXPECT_THAT(spans(R"((?i:'s))", "'S'\u017f"), ElementsAre("['S]", "['\u017f]")) << "long s";
}

TEST(Regex, EmptyMatchesFallBetweenCharacters) {
  EXPECT_THAT(spans("x*", "axé"), ElementsAre("[]", "a", "[x]", "é", "[]"));
  EXPECT_TRUE(spans("a", "").empty());
}

TEST(Regex, RefusesByNameWhatItCannotTranslate) {
  for (const auto& [pattern, name] :
       std::initializer_list<std::pair<const char*, const char*>>{{R"((a)\1)", "\\1"},
                                                                  {R"(\p{Klingon})", "\\p{Klingon}"},
                                                                  {"[[:alpha:]]", "[:class:]"},
                                                                  {"a{2}+", "{2}+"},
                                                                  {"(?x) a", "(?x"},
                                                                  {R"(\K)", "\\K"},
                                                                  {"a**", "quantifier"},
                                                                  {"(a", "unclosed group"},
                                                                  {"a)", "unmatched"},
                                                                  {"[a", "unclosed ["},
                                                                  {"*a", "nothing to repeat"},
                                                                  {R"(\x{D800})", "no character"}}) {
    EXPECT_THAT(spans(pattern, "a"), ElementsAre(HasSubstr(name))) << pattern;
  }
  EXPECT_FALSE(Regex::compile(std::string(1 << 17, 'a')).ok());
  EXPECT_FALSE(Regex::compile(std::string(1000, '(') + std::string(1000, ')')).ok());
  EXPECT_FALSE(Regex::compile("((a{1000}){1000}){1000}").ok());
}

}  // namespace
}  // namespace lk
