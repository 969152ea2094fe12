// SPDX-License-Identifier: Apache-2.0
// Tools beside a format of the answer: the format binds the answer, not the calls.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lk/serve/openai/openai.h"
#include "lk/serve/openai/tool_table.h"

namespace lk {
namespace {

using ::testing::ElementsAre;

ApiResult<GenerateRequest> ask(ToolFormat format, const std::string& fields) {
  const ApiDefaults defaults{.context = 1000, .vocab_size = 400, .generation = {}, .tool_format = format};
  return parse_chat_request(
      R"({"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": {"name": "f"}}],
      "response_format": {"type": "json_object"})" +
          fields + "}",
      defaults);
}

TEST(ToolsAndFormat, TheFormatBindsTheAnswerOnly) {
  const auto hermes = ask(ToolFormat::kHermes, "");
  ASSERT_TRUE(hermes.ok()) << hermes.error.message;
  EXPECT_TRUE(hermes.value->tools_allowed);
  ASSERT_TRUE(hermes.value->grammar.has_value());
  EXPECT_EQ(hermes.value->grammar->kind, GrammarSpec::Kind::kJsonObject);
  EXPECT_THAT(hermes.value->prompts[0].call_openings, ElementsAre("<tool_call>"));
  EXPECT_THAT(ask(ToolFormat::kLlama3, "").value->prompts[0].call_openings, ElementsAre("<|python_tag|>"));
  EXPECT_TRUE(ask(ToolFormat::kLlama3, "").value->prompts[0].bare_calls);
  EXPECT_FALSE(hermes.value->prompts[0].bare_calls);
  // What comes behind the mark is what a forced call would be.
  ASSERT_TRUE(hermes.value->call_grammar.has_value());
  EXPECT_EQ(hermes.value->call_grammar->text,
            ask(ToolFormat::kHermes, R"(, "tool_choice": "required")").value->grammar->text);
  const auto pythonic = ask(ToolFormat::kPythonic, "");
  EXPECT_THAT(pythonic.value->prompts[0].call_openings, ElementsAre("<|python_tag|>", "<|python_start|>"));
  EXPECT_TRUE(pythonic.value->prompts[0].bare_calls);
  EXPECT_EQ(pythonic.value->call_grammar->kind, GrammarSpec::Kind::kPythonCalls);
  EXPECT_EQ(pythonic.value->call_grammar->text, R"([{"name":"f","parameters":{"type":"object","properties":{}}}])");
  const auto none = ask(ToolFormat::kNone, "");
  EXPECT_FALSE(none.value->tools_allowed);
  EXPECT_TRUE(none.value->prompts[0].call_openings.empty());
  EXPECT_FALSE(none.value->call_grammar.has_value());
}

TEST(ToolsAndFormat, AForcedCallLeavesNothingToBind) {
  for (const char* choice : {R"("required")", R"({"type": "function", "function": {"name": "f"}})"}) {
    const auto forced = ask(ToolFormat::kHermes, std::string(R"(, "tool_choice": )") + choice);
    ASSERT_TRUE(forced.ok()) << forced.error.message;
    EXPECT_TRUE(forced.value->tool_forced);
    EXPECT_EQ(forced.value->grammar->kind, GrammarSpec::Kind::kJsonSchema);
    EXPECT_TRUE(forced.value->prompts[0].call_openings.empty());
  }
  const auto none = ask(ToolFormat::kHermes, R"(, "tool_choice": "none")");
  EXPECT_EQ(none.value->grammar->kind, GrammarSpec::Kind::kJsonObject);
  EXPECT_TRUE(none.value->prompts[0].call_openings.empty());
  EXPECT_FALSE(ask(ToolFormat::kHermes, R"(, "guided_regex": "a")").ok()) << "two formats";
}

}  // namespace
}  // namespace lk
