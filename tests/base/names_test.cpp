// SPDX-License-Identifier: Apache-2.0
#include "lk/base/names.h"
#include "lk/base/plain_text.h"

#include <gtest/gtest.h>

#include <regex>

namespace lk {
namespace {

TEST(Names, AllowedAndRefused) {
  for (const char* good : {"a", "A9", "sql-v2.1_x", "0", "a..b"}) EXPECT_TRUE(is_valid_name(good)) << good;
  EXPECT_TRUE(is_valid_name(std::string(128, 'x')));
  for (const char* bad : {"", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a@1", "a\n", "\xc3\xa4", "a:b", "a*", "../x"})
    EXPECT_FALSE(is_valid_name(bad)) << bad;
  EXPECT_FALSE(is_valid_name(std::string(129, 'x')));
  EXPECT_FALSE(is_valid_name(std::string_view("a\0b", 3)));
}

TEST(Names, OfAdaptersAsHubsWriteThem) {
  const std::regex pattern(kAdapterNamePattern);  // what the API's page says of them
  for (const char* good : {"a", "org/name", "_draft", "a+b", "org-1/name_v2.0", "a/b/c", "_", "a..b"}) {
    EXPECT_TRUE(is_adapter_name(good)) << good;
    EXPECT_TRUE(std::regex_match(good, pattern)) << good;
  }
  EXPECT_TRUE(is_adapter_name(std::string(128, 'x')));
  for (const char* bad : {"",   "/",    "/a", "a/",  "a//b", "..",  "a/..", "a/../b", "../a", "a/.b",  ".a",
                          "+a", "a/+b", "-a", "a b", "a@1",  "a:b", "a*b",  "a\\b",   "a\n",  "a%2fb", "\xc3\xa4"}) {
    EXPECT_FALSE(is_adapter_name(bad)) << bad;
    EXPECT_FALSE(std::regex_match(bad, pattern)) << bad;
  }
  EXPECT_FALSE(is_adapter_name(std::string(129, 'x')));
  EXPECT_FALSE(is_adapter_name(std::string_view("a\0b", 3)));
  EXPECT_TRUE(check_adapter_name("adapter", "org/name").ok());
  EXPECT_EQ(check_adapter_name("adapter", "a//b\n").message().find('\n'), std::string::npos);
}

TEST(Names, MessageShowsNothingUnprintable) {
  const Status status = check_name("adapter", "x\n\x1b[31m" + std::string(500, 'y'));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message().find_first_of("\n\x1b"), std::string::npos);
  EXPECT_LT(status.message().size(), 250u);
  EXPECT_TRUE(check_name("adapter", "sql").ok());
}

TEST(Glob, MatchesWholeNames) {
  struct Case {
    const char* pattern;
    const char* text;
    bool matches;
  };
  for (const Case& c :
       {Case{"*", "", true},      {"*", "abc", true},   {"a*", "abc", true},     {"a*", "bac", false},
        {"*c", "abc", true},      {"*b", "abc", false}, {"a*c", "ac", true},     {"a*c*e", "abcde", true},
        {"a*c*e", "abcd", false}, {"?", "a", true},     {"?", "", false},        {"a?c", "abc", true},
        {"a?c", "ac", false},     {"abc", "abc", true}, {"abc", "ABC", false},   {"", "", true},
        {"", "a", false},         {"**a", "ba", true},  {"*aab", "aaaab", true}, {"sql-*-v?", "sql-legal-v2", true}})
    EXPECT_EQ(glob_match(c.pattern, c.text), c.matches) << c.pattern << " on " << c.text;
}

TEST(Glob, HostilePatternIsCheap) {
  std::string pattern;
  for (int i = 0; i < 60; ++i) pattern += "a*";
  EXPECT_FALSE(glob_match(pattern + "b", std::string(128, 'a')));  // exponential for a matcher that retries every star
  EXPECT_TRUE(is_valid_glob("a*?.-_"));
  EXPECT_TRUE(is_valid_glob("org/*+x"));
  for (const char* bad : {"", "a,b", "a\\b", "[ab]", "a b"}) EXPECT_FALSE(is_valid_glob(bad)) << bad;
}

TEST(PlainText, OneLineOfUtf8) {
  EXPECT_TRUE(is_plain_text("", 0));
  EXPECT_TRUE(is_plain_text("Schl\xc3\xbcssel f\xc3\xbcr CI", 64));
  for (const char* bad : {"a\nb", "\x1b[0m", "\x7f", "\xff", "\xc0\xaf", "\xc2\x85", "\xed\xa0\x80"})
    EXPECT_FALSE(is_plain_text(bad, 64)) << bad;
  EXPECT_FALSE(is_plain_text(std::string_view("a\0b", 3), 64));
  EXPECT_FALSE(is_plain_text("abcd", 3));
}

}  // namespace
}  // namespace lk
