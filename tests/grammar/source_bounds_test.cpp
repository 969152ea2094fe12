// SPDX-License-Identifier: Apache-2.0
// Sources that break off anywhere: no reader looks behind their end, and each says what is missing.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "lk/grammar/frontends.h"
#include "lk/grammar/regex_grammar.h"

namespace lk {
namespace {

using namespace grammar;

// A text that ends where a page ends, before one that must not be read.
class GuardedText {
 public:
  GuardedText()
      : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))),
        base_(
            static_cast<char*>(mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    EXPECT_EQ(mprotect(base_ + page_, page_, PROT_NONE), 0);
  }
  ~GuardedText() { munmap(base_, 2 * page_); }
  GuardedText(const GuardedText&) = delete;
  GuardedText& operator=(const GuardedText&) = delete;
  std::string_view put(std::string_view text) {
    char* begin = base_ + page_ - text.size();
    std::memcpy(begin, text.data(), text.size());
    return {begin, text.size()};
  }

 private:
  const size_t page_;
  char* const base_;
};

using Reader = std::function<Status(Ir&, std::string_view, const GrammarLimits&, Budget&)>;

// Every prefix of `source`, and every prefix with each of `tails` behind it.
void expect_bounded(const Reader& read, std::string_view source, const std::vector<std::string>& tails) {
  GuardedText guarded;
  const GrammarLimits limits;
  for (size_t length = 0; length <= source.size(); ++length) {
    for (const std::string& tail : tails) {
      Ir ir;
      Budget budget(limits);
      const Status status = read(ir, guarded.put(std::string(source.substr(0, length)) + tail), limits, budget);
      EXPECT_TRUE(status.ok() || status.code() == StatusCode::kInvalidArgument) << status.message();
    }
  }
}

TEST(SourceBounds, Lark) {
  const Reader read = [](Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
    return translate_lark(ir, text, limits, budget).status();
  };
  expect_bounded(
      read,
      "// numbers\n?start: list -> all\n!list.2: \"[\" [item (\",\" item)*] \"]\"\n"
      "item: /[a-z\\/\\]]+/ | \"a\"..\"z\" | \"Select\"i | X~2..3 | Y{1,2} | \"\\u00e9\\x41\\U0001F600\\n\"\n"
      "    | \"\xC3\xA9\"\nX: \"x\"?\nY: (\"y\" | \"z\")+\n%import common.WS -> GAP\n"
      "%import common (INT, CNAME)\n%ignore GAP\n%ignore \" \" // end\n",
      {"", "\\", "\"\\", "\"\\x", "/\\", "/", "%", "-", "{1"});
}

TEST(SourceBounds, Ebnf) {
  const Reader read = [](Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
    return translate_ebnf(ir, text, limits, budget).status();
  };
  expect_bounded(read,
                 "# words\nroot ::= word (\" \" word)* [^a-z\\]\\x41]? '\\u00e9' tail{1,2}\nword ::= [a-zA-Z\\d_-]+ | "
                 "\"\\\"\\U0001F600\xC3\xA9\"\ntail ::= . | \"x\"{2}\n",
                 {"", "\\", "\"\\", "[\\", "[a-", "\"\\x", "{1,"});
}

TEST(SourceBounds, Regex) {
  const Reader read = [](Ir& ir, std::string_view text, const GrammarLimits&, Budget& budget) {
    return parse_regex(ir, text, {}, budget).status();
  };
  expect_bounded(
      read, "^(?:a|b+?)(?P<name>[^\\]x-z\\d\\x41]{1,3})(?<n>\\u{1F600}\\u00e9\\U0001F600|\xC3\xA9*)[\\-a]\\.\\n{2,}$",
      {"", "\\", "\\x", "\\u{", "[", "[\\", "[a-", "(?", "(?P", "(?<", "{,", "{1,"});
}

TEST(SourceBounds, SchemasAndCalls) {
  const Reader schema = [](Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
    return translate_schema(ir, text, limits, budget).status();
  };
  const std::string object =
      R"({"type":"object","properties":{"a":{"type":"string","pattern":"^\\d+\\u0041$"},"b":{"enum":[1,null,"\u00e9"]}}})";
  expect_bounded(schema, object, {"", "\\", "\"\\", "\"\\u"});
  const Reader calls = [](Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
    return translate_python_calls(ir, text, limits, budget).status();
  };
  expect_bounded(calls, R"([{"name":"f","parameters":)" + object + "}]", {"", "\\", "\"\\", "\"\\u"});
}

}  // namespace
}  // namespace lk
