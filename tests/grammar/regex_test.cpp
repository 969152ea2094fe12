// SPDX-License-Identifier: Apache-2.0
// Regular expressions and choices, against PCRE2.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <gmock/gmock.h>
#include <pcre2.h>

#include "grammar/grammar_test_util.h"
#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

using namespace grammar_testing;
using testing::HasSubstr;

class Pcre {
 public:
  explicit Pcre(const std::string& pattern) {
    int error = 0;
    size_t offset = 0;
    code_ =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                      PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_DOLLAR_ENDONLY, &error, &offset, nullptr);
    LK_CHECK(code_ != nullptr, "{}", pattern);
    data_ = pcre2_match_data_create(1, nullptr);
  }
  ~Pcre() {
    pcre2_match_data_free(data_);
    pcre2_code_free(code_);
  }
  bool matches(const std::string& text) const {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, data_, nullptr) >= 0;
  }

 private:
  pcre2_code* code_;
  pcre2_match_data* data_;
};

const std::vector<std::string> kPatterns = {"abc",
                                            "a|b|cd",
                                            "(ab)*c?",
                                            "[a-c]+x",
                                            "[^a-c]+",
                                            "a{2,4}b{0,2}",
                                            "(a|b)*a(a|b){3}",
                                            "\\d+(\\.\\d{1,2})?",
                                            "\\w+@\\w+\\.(com|org)",
                                            ".*",
                                            "a.b",
                                            "\\s*\\S+\\s*",
                                            "(?:ab|a)(?:bc|c)",
                                            "[\\d\\-x]+",
                                            "é+|[à-ü]b",
                                            "[^\\x00-\\x7f]*",
                                            "^a+$",
                                            "(x?){5}x{2}",
                                            "\\u00e9|\\u{e9}b|[\\]\\[]",
                                            "a+?b*?",
                                            "(|a)b",
                                            "[a-z-]+",
                                            "(?<n>a)(b)?",
                                            "\\D\\W",
                                            "[^\\n\\d]+",
                                            "\\{\\}|a{,x",
                                            "((a|b|)c)+",
                                            "[😀-😂]x?"};

TEST(Regex, AgreesWithPcre2OnRandomTexts) {
  std::mt19937 random(5);
  const auto vocabulary = byte_vocabulary();
  const std::vector<std::string> alphabet = {"a", "b", "c", "d", "x", "1", "2",   ".", "@", " ", "\n",
                                             "é", "ü", "😀", "-", "]", "[", "com", "{", "}", "\t"};
  int whole = 0, compared = 0;
  for (const std::string& pattern : kPatterns) {
    const auto grammar = compile(regex_spec(pattern), vocabulary);
    ASSERT_NE(grammar, nullptr);
    // PCRE2 has no \u.
    const Pcre pcre(pattern.find("\\u") == std::string::npos ? pattern : "\\x{e9}|\\x{e9}b|[\\]\\[]");
    for (int round = 0; round < 500; ++round) {
      std::string text;
      if (round % 2 == 0) {
        for (uint32_t k = random() % 8; k > 0; --k) text += alphabet[random() % alphabet.size()];
      } else {  // texts of the language, and near it
        text = random_text(grammar, *vocabulary, random, static_cast<int>(random() % 10));
        ASSERT_EQ(utf8::find_invalid(text), std::nullopt);
        if (round % 4 == 3) text += alphabet[random() % alphabet.size()];
      }
      const bool expected = pcre.matches(text);
      ASSERT_EQ(matches(grammar, text), expected) << pattern << " on " << text;
      whole += expected;
      ++compared;
    }
  }
  EXPECT_GE(compared, 10'000);
  EXPECT_GE(whole, 3'000);
}

TEST(Regex, RefusesByName) {
  const auto error = [](const char* pattern) { return compile_error(regex_spec(pattern)); };
  EXPECT_THAT(error("(a)\\1"), HasSubstr("backreferences"));
  EXPECT_THAT(error("a(?=b)"), HasSubstr("look-around"));
  EXPECT_THAT(error("a(?<!b)"), HasSubstr("look-around"));
  EXPECT_THAT(error("(?i)a"), HasSubstr("group options"));
  EXPECT_THAT(error("\\ba"), HasSubstr("word boundaries"));
  EXPECT_THAT(error("\\p{L}"), HasSubstr("Unicode properties"));
  EXPECT_THAT(error("a^b"), HasSubstr("beginning only"));
  EXPECT_THAT(error("a$b"), HasSubstr("end only"));
  EXPECT_THAT(error("(a"), HasSubstr("not closed"));
  EXPECT_THAT(error("a)"), HasSubstr("unmatched"));
  EXPECT_THAT(error("[a"), HasSubstr("not closed"));
  EXPECT_THAT(error("*a"), HasSubstr("nothing to repeat"));
  EXPECT_THAT(error("a++"), HasSubstr("possessive"));
  EXPECT_THAT(error("[b-a]"), HasSubstr("end is before"));
  EXPECT_THAT(error("[[:alpha:]]"), HasSubstr("POSIX"));
  EXPECT_THAT(error("a\\"), HasSubstr("ends with"));
  EXPECT_THAT(error("\xC3"), HasSubstr("UTF-8"));
  EXPECT_THAT(error("\\uD800"), HasSubstr("no Unicode character"));
  EXPECT_THAT(error("a{,2}"), HasSubstr("write {0,n}"));
  EXPECT_THAT(error("a{3,2}"), HasSubstr("below its minimum"));
}

TEST(Regex, LimitsHold) {
  EXPECT_THAT(compile_error(regex_spec("((a{1000}){1000}){1000}")), HasSubstr("too "));
  EXPECT_THAT(compile_error(regex_spec("(a|b)*a(a|b){40}")), HasSubstr("too ")) << "2^40 nodes";
  EXPECT_THAT(compile_error(regex_spec(std::string(70'000, 'a'))), HasSubstr("more than 65536"));
  EXPECT_THAT(compile_error(regex_spec(std::string(100, '(') + std::string(100, ')'))),
              HasSubstr("nested more than 64"));
  EXPECT_THAT(compile_error(regex_spec(std::string(20'000, '('))), HasSubstr("nested more than 64"));
  GrammarLimits quick;
  quick.compile_timeout = std::chrono::milliseconds(1);
  quick.max_compiled_bytes = int64_t{1} << 40;
  EXPECT_THAT(compile_error(regex_spec("(.?){3000}"), quick), HasSubstr("takes more than 1 ms"));
}

TEST(Choice, OnlyTheChoices) {
  const auto grammar = compile(choice_spec({"yes", "no", "nope", "ä\"b"}), byte_vocabulary());
  for (const char* text : {"yes", "no", "nope", "ä\"b"}) EXPECT_TRUE(matches(grammar, text)) << text;
  EXPECT_EQ(fit(grammar, "nop"), Fit::kPrefix);
  EXPECT_EQ(fit(grammar, "nopes"), Fit::kNo);
  EXPECT_EQ(fit(grammar, ""), Fit::kPrefix);
  EXPECT_THAT(compile_error(choice_spec({})), HasSubstr("empty"));
  EXPECT_THAT(compile_error(choice_spec({"a", ""})), HasSubstr("choice 1"));
}

}  // namespace
}  // namespace lk
