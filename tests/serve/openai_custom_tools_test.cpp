// SPDX-License-Identifier: Apache-2.0
// allowed_tools and custom tools: in requests, in conversations, in answers and their streams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/serve/openai/custom_tools.h"
#include "lk/serve/openai/openai.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kTools = R"("tools": [
  {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
  {"type": "custom", "custom": {"name": "sh", "description": "A shell."}},
  {"type": "custom", "custom": {"name": "date", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]{4}"}}}},
  {"type": "custom", "custom": {"name": "sum", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: \"1\""}}}}])";

ApiResult<GenerateRequest> ask(const std::string& fields) {
  const ApiDefaults defaults{.context = 1000, .vocab_size = 500, .generation = {}, .tool_format = ToolFormat::kHermes};
  return parse_chat_request(R"({"messages": [{"role": "user", "content": "hi"}], )" + fields + "}", defaults);
}

std::vector<std::string> names_of(const GenerateRequest& request) {
  std::vector<std::string> names;
  for (const json::value& tool : request.prompts[0].tools)
    names.emplace_back(tool.at("function").at("name").as_string());
  return names;
}

TEST(CustomTools, ModelsSeeFunctions) {
  const auto parsed = ask(kTools);
  ASSERT_TRUE(parsed.ok()) << parsed.error.message;
  EXPECT_THAT(names_of(*parsed.value), ElementsAre("f", "sh", "date", "sum"));
  EXPECT_EQ(parsed.value->prompts[0].tools[1],
            json::parse(R"({"type": "function", "function": {"name": "sh", "description": "A shell.",
    "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": false}}})"));
  const json::value& date = parsed.value->prompts[0].tools[2].at("function");
  EXPECT_EQ(date.at("parameters").at("properties").at("input").at("pattern"), "^(?:[0-9]{4})$");
  EXPECT_THAT(std::string(parsed.value->prompts[0].tools[3].at("function").at("description").as_string()),
              HasSubstr("start: \"1\""));
  EXPECT_EQ(parsed.value->custom_tools.size(), 3u);
  EXPECT_TRUE(parsed.value->tools_allowed);
}

TEST(CustomTools, Forced) {
  const auto named = [](const std::string& name) {
    return ask(std::string(kTools) + R"(, "tool_choice": {"type": "custom", "custom": {"name": ")" + name + "\"}}");
  };
  const auto text = named("sh");
  ASSERT_TRUE(text.ok()) << text.error.message;
  EXPECT_TRUE(text.value->tool_named && text.value->tool_forced && !text.value->forced_input);
  EXPECT_EQ(text.value->grammar->kind, GrammarSpec::Kind::kJsonSchema);
  for (const auto& [name, kind] : {std::pair{"date", GrammarSpec::Kind::kRegex}, {"sum", GrammarSpec::Kind::kLark}}) {
    const auto bound = named(name);
    ASSERT_TRUE(bound.ok()) << bound.error.message;
    EXPECT_TRUE(bound.value->forced_input);
    EXPECT_EQ(bound.value->forced_tool, name);
    EXPECT_EQ(bound.value->grammar->kind, kind);
    EXPECT_THAT(bound.value->grammar_field, HasSubstr("custom.format"));
  }
  const auto any = ask(std::string(kTools) + R"(, "tool_choice": "required")");
  ASSERT_FALSE(any.ok()) << "a Lark grammar among several";
  EXPECT_EQ(any.error.param, "tools[3].custom.format");
}

TEST(CustomTools, AllowedToolsLeaveTheOthersOut) {
  const auto allowed = [](const std::string& mode, const std::string& tools) {
    return ask(std::string(kTools) + R"(, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": ")" +
               mode + R"(", "tools": [)" + tools + "]}}");
  };
  const std::string f = R"({"type": "function", "function": {"name": "f"}})",
                    sh = R"({"type": "custom", "custom": {"name": "sh"}})",
                    sum = R"({"type": "custom", "custom": {"name": "sum"}})";
  const auto some = allowed("auto", sh + "," + f);
  ASSERT_TRUE(some.ok()) << some.error.message;
  EXPECT_THAT(names_of(*some.value), ElementsAre("f", "sh"));
  EXPECT_TRUE(some.value->tools_allowed && !some.value->tool_forced);
  const auto required = allowed("required", sh + "," + f);
  ASSERT_TRUE(required.ok()) << required.error.message;
  EXPECT_TRUE(required.value->tool_forced && !required.value->tool_named && required.value->forced_tool.empty());
  EXPECT_THAT(required.value->grammar->text, HasSubstr("\"sh\""));
  EXPECT_THAT(required.value->grammar->text, ::testing::Not(HasSubstr("\"date\"")));
  const auto only = allowed("required", sum);
  ASSERT_TRUE(only.ok()) << only.error.message;
  EXPECT_TRUE(only.value->forced_input && !only.value->tool_named);
  EXPECT_EQ(only.value->forced_tool, "sum");
}

TEST(CustomTools, WhatIsWrongIsNamed) {
  const auto choice = [](const std::string& value) { return std::string(kTools) + ", \"tool_choice\": " + value; };
  const auto custom = [](const std::string& value) {
    return R"("tools": [{"type": "custom", "custom": )" + value + "}]";
  };
  for (
      const auto& [fields, param] : std::vector<std::pair<std::string, std::string>>{
          {R"("tools": [{"type": "custom"}])", "tools[0].custom"},
          {R"("tools": [{"type": "web_search"}])", "tools[0].type"},
          {custom("{}"), "tools[0].custom.name"},
          {custom(R"({"name": "a b"})"), "tools[0].custom.name"},
          {custom(R"({"name": "a", "format": {"type": "json"}})"), "tools[0].custom.format.type"},
          {custom(R"({"name": "a", "format": {"type": "grammar"}})"), "tools[0].custom.format.grammar"},
          {custom(R"({"name": "a", "format": {"type": "grammar", "grammar": {"syntax": "gbnf", "definition": "x"}}})"),
           "tools[0].custom.format.grammar.syntax"},
          {custom(R"({"name": "a", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}})"),
           "tools[0].custom.format.grammar.definition"},
          {choice(R"({"type": "custom"})"), "tool_choice.custom"},
          {choice(R"({"type": "custom", "custom": {"name": "f"}})"), "tool_choice.custom.name"},
          {choice(R"({"type": "function", "function": {"name": "sh"}})"), "tool_choice.function.name"},
          {choice(R"({"type": "allowed_tools"})"), "tool_choice.allowed_tools"},
          {choice(R"({"type": "allowed_tools", "allowed_tools": {"tools": [1]}})"), "tool_choice.allowed_tools.mode"},
          {choice(R"({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}})"),
           "tool_choice.allowed_tools.tools"},
          {choice(
               R"({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "h"}}]}})"),
           "tool_choice.allowed_tools.tools[0].function.name"},
          {choice(
               R"({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "allowed_tools"}]}})"),
           "tool_choice.allowed_tools.tools[0].type"}}) {
    const auto parsed = ask(fields);
    ASSERT_FALSE(parsed.ok()) << fields;
    EXPECT_EQ(parsed.error.param, param) << parsed.error.message;
  }
}

TEST(CustomTools, EarlierCallsComeBack) {
  const auto parsed = parse_chat_request(
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls":
        [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls \"x\"\n"}}]}, {"role": "tool", "tool_call_id": "c", "content": "y"}]})",
      {.context = 1000, .vocab_size = 500, .generation = {}});
  ASSERT_TRUE(parsed.ok()) << parsed.error.message;
  EXPECT_EQ(
      parsed.value->prompts[0].messages[1].at("tool_calls").at(0),
      json::parse(
          R"({"id": "c", "type": "function", "function": {"name": "sh", "arguments": {"input": "ls \"x\"\n"}}})"));
}

// However the arguments are cut.
TEST(CustomTools, TheInputOfArguments) {
  for (const auto& [arguments, expected] : std::vector<std::pair<std::string, std::string>>{
           {R"({"input": "ls -l"})", "ls -l"},
           {" { \"input\" :\n\"a\\n\\t\\\"\\\\\\/\" } ", "a\n\t\"\\/"},
           {R"({"input": "\u00e9\ud83d\ude42\u0041"})", "é🙂A"},
           {R"({"input": "\ud83dx\ude42\ud83d"})", "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD"},
           {R"({"input": ""})", ""},
           {R"({"input": "cut o)", "cut o"},
           {R"({"code": "x"})", R"({"code": "x"})"},
           {R"({"input": 5})", R"({"input": 5})"},
           {R"({"inp)", ""},
           {"", ""}})
    for (size_t cut = 0; cut <= arguments.size(); ++cut) {
      openai::CustomInput input;
      std::string text;
      input.push(std::string_view(arguments).substr(0, cut), text);
      input.push(std::string_view(arguments).substr(cut), text);
      input.finish(text);
      EXPECT_EQ(text, expected) << arguments << " at " << cut;
    }
}

// The whole answer, and what its stream adds up to.
json::array calls_of(const GenerateRequest& request, const std::string& text, bool stream) {
  const auto tokenizer = testing::byte_tokenizer();
  AnswerFormatter formatter(request, "id", 0, "m", tokenizer.get(), request.tool_format);
  Completion completion{.text = text, .token_ids = testing::byte_tokens(text)};
  completion.finish = FinishReason::kStop;
  if (!stream) {
    const json::value answer = json::parse(formatter.response({completion}));
    const json::object& message = answer.at("choices").at(0).at("message").as_object();
    return message.contains("tool_calls") ? message.at("tool_calls").as_array() : json::array();
  }
  std::string events;
  for (const char c : text) events += formatter.delta(0, {.text = std::string(1, c), .tokens = {{.token = c}}});
  events += formatter.done(0, completion);
  json::array calls;
  for (size_t at = 0; (at = events.find("data: ", at)) != events.npos;) {
    at += 6;
    const json::value event = json::parse(events.substr(at, events.find("\n\n", at) - at));
    const json::object& delta = event.at("choices").at(0).at("delta").as_object();
    if (!delta.contains("tool_calls")) continue;
    json::object part = delta.at("tool_calls").at(0).as_object();
    const auto index = static_cast<size_t>(part.at("index").as_int64());
    part.erase("index");
    if (calls.size() <= index) {
      calls.push_back(part);
      continue;
    }
    for (const auto& [key, value] : part)
      for (const auto& [name, piece] : value.as_object()) {
        json::string& whole = calls[index].as_object().at(key).as_object().at(name).as_string();
        whole += piece.as_string();
      }
  }
  return calls;
}

TEST(CustomTools, AnswersHaveTheirInput) {
  const auto automatic = ask(kTools);
  const std::string text =
      R"(<tool_call>{"name": "sh", "arguments": {"input": "ls\n"}}</tool_call><tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>)"
      R"(<tool_call>{"name": "date", "arguments": {"year": 1}}</tool_call>)";
  for (const bool stream : {false, true}) {
    const json::array calls = calls_of(*automatic.value, text, stream);
    ASSERT_EQ(calls.size(), 3u);
    EXPECT_EQ(calls[0].at("type"), "custom");
    EXPECT_EQ(calls[0].at("custom"), json::parse(R"({"name": "sh", "input": "ls\n"})"));
    EXPECT_EQ(calls[1].at("type"), "function");
    EXPECT_EQ(calls[1].at("function"), json::parse(R"({"name": "f", "arguments": "{\"x\": 1}"})"));
    EXPECT_EQ(calls[2].at("custom"), json::parse(R"({"name": "date", "input": "{\"year\": 1}"})"));
  }
  const auto forced = ask(std::string(kTools) + R"(, "tool_choice": {"type": "custom", "custom": {"name": "sum"}})");
  const auto written = ask(std::string(kTools) + R"(, "tool_choice": {"type": "custom", "custom": {"name": "sh"}})");
  for (const bool stream : {false, true}) {
    EXPECT_EQ(calls_of(*forced.value, "1", stream).at(0).at("custom"), json::parse(R"({"name": "sum", "input": "1"})"));
    EXPECT_EQ(calls_of(*written.value, R"({"input": "ls"})", stream).at(0).at("custom"),
              json::parse(R"({"name": "sh", "input": "ls"})"));
  }
}

}  // namespace
}  // namespace lk
