// SPDX-License-Identifier: Apache-2.0
// Requests of the Responses and the Messages API: what they are told as, and that wrong ones are refused in their own
// words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/openai/openai.h"

namespace lk {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

const ApiDefaults kDefaults{.context = 4096, .vocab_size = 400, .tool_format = ToolFormat::kHermes};
using Parse = ApiResult<GenerateRequest> (*)(std::string_view, const ApiDefaults&);

GenerateRequest good(Parse parse, std::string_view body) {
  ApiResult<GenerateRequest> parsed = parse(body, kDefaults);
  EXPECT_TRUE(parsed.ok()) << parsed.error.param << ": " << parsed.error.message << "\n" << body;
  return parsed.ok() ? std::move(*parsed.value) : GenerateRequest{.prompts = {TextRequest()}};
}

// Everything that an answer depends on.
std::string facts(const GenerateRequest& request) {
  const TextRequest& text = request.prompts.at(0);
  const SamplingParams& s = text.sampling;
  const auto grammar = [](const std::optional<GrammarSpec>& spec) { return spec ? spec->text : "none"; };
  return fmt::format(
      "{} {} {} model {} max {} stop {} t {} p {} k {} seed {} logprobs {} {} grammar {} {} forced {} {} allowed {} "
      "parallel {} budget {} shown {} continue {} {} user {}",
      json_text(text.messages), json_text(text.tools), json_text(text.template_variables), request.model,
      text.max_tokens, fmt::join(text.stop, ","), s.temperature, s.top_p, s.top_k, s.seed, request.logprobs,
      s.num_logprobs, grammar(request.grammar), grammar(request.call_grammar), request.tool_forced, request.forced_tool,
      request.tools_allowed, request.parallel_tool_calls, text.thinking_budget, request.include_reasoning,
      text.continue_final_message, text.add_generation_prompt, request.user);
}
void expect_same(const GenerateRequest& told, std::string_view chat) {
  EXPECT_EQ(facts(told), facts(good(parse_chat_request, chat)));
}

constexpr const char* kWeather =
    R"({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false})";

TEST(ResponsesRequest, IsToldAsTheChatThatItMeans) {
  expect_same(good(parse_responses_request, R"({"model": "m", "input": "hi", "seed": 1})"),
              R"({"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 1})");
  expect_same(
      good(
          parse_responses_request,
          R"({"input": [{"role": "developer", "content": "d"}, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
           {"type": "input_text", "text": "b"}]}], "instructions": "be kind", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 1,
           "user": "u", "stop": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 4, "store": false, "background": false,
           "reasoning": {"effort": "high", "summary": "auto"}, "chat_template_kwargs": {"a": 1}, "previous_response_id": null})"),
      R"({"messages": [{"role": "system", "content": "be kind"}, {"role": "developer", "content": "d"},
          {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
          "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 1, "user": "u", "stop": "x", "logprobs": true, "top_logprobs": 4,
          "reasoning_effort": "high", "chat_template_kwargs": {"a": 1}})");
}

TEST(ResponsesRequest, TurnsOfTheAssistantComeTogether) {
  expect_same(good(parse_responses_request,
                   R"({"input": [{"role": "user", "content": "q"},
           {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": null, "status": "completed"},
           {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "let me see", "annotations": [], "logprobs": []}]},
           {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
           {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{\"a\": 2"},
           {"type": "function_call_output", "call_id": "c1", "output": "one"},
           {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
           {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "short"}]},
           {"role": "assistant", "content": "done"}, {"role": "assistant", "content": "really"}, {"role": "user", "content": "more"}], "seed": 1})"),
              R"({"messages": [{"role": "user", "content": "q"},
          {"role": "assistant", "reasoning_content": "hm", "content": [{"type": "text", "text": "let me see"}],
           "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                          {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 2"}}]},
          {"role": "tool", "tool_call_id": "c1", "content": "one"}, {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
          {"role": "assistant", "reasoning_content": "short", "content": "done"}, {"role": "assistant", "content": "really"}, {"role": "user", "content": "more"}], "seed": 1})");
}

TEST(ResponsesRequest, ToolsAndFormats) {
  const std::string flat = fmt::format(
      R"({{"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": true}})", kWeather);
  const std::string nested = fmt::format(
      R"({{"type": "function", "function": {{"name": "f", "description": "d", "parameters": {}, "strict": true}}}})",
      kWeather);
  for (const auto& [own, chat] : std::vector<std::pair<std::string, std::string>>{
           {R"("auto")", R"("auto")"},
           {R"("required")", R"("required")"},
           {R"("none")", R"("none")"},
           {R"({"type": "function", "name": "f"})", R"({"type": "function", "function": {"name": "f"}})"}})
    expect_same(
        good(parse_responses_request,
             fmt::format(
                 R"({{"input": "q", "seed": 1, "parallel_tool_calls": false, "tools": [{}], "tool_choice": {}}})", flat,
                 own)),
        fmt::format(
            R"({{"messages": [{{"role": "user", "content": "q"}}], "seed": 1, "parallel_tool_calls": false, "tools": [{}], "tool_choice": {}}})",
            nested, chat));
  expect_same(
      good(
          parse_responses_request,
          fmt::format(
              R"({{"input": "q", "seed": 1, "text": {{"format": {{"type": "json_schema", "name": "n", "schema": {}, "strict": true}}, "verbosity": "low"}}}})",
              kWeather)),
      fmt::format(
          R"({{"messages": [{{"role": "user", "content": "q"}}], "seed": 1, "response_format": {{"type": "json_schema", "json_schema": {{"name": "n", "schema": {}}}}}}})",
          kWeather));
  expect_same(
      good(parse_responses_request, R"({"input": "q", "seed": 1, "text": {"format": {"type": "json_object"}}})"),
      R"({"messages": [{"role": "user", "content": "q"}], "seed": 1, "response_format": {"type": "json_object"}})");
  EXPECT_TRUE(good(parse_responses_request, R"({"input": "q", "truncation": "auto"})").drops_oldest);
}

struct Wrong {
  const char *body, *param, *words;
};

void expect_refused(Parse parse, std::initializer_list<Wrong> wrongs) {
  for (const Wrong& wrong : wrongs) {
    const ApiResult<GenerateRequest> parsed = parse(wrong.body, kDefaults);
    ASSERT_FALSE(parsed.ok()) << wrong.body;
    EXPECT_EQ(parsed.error.status, 400);
    EXPECT_EQ(parsed.error.param, wrong.param) << wrong.body << parsed.error.message;
    EXPECT_THAT(parsed.error.message, HasSubstr(wrong.words)) << wrong.body;
    EXPECT_THAT(parsed.error.message, HasSubstr(fmt::format("\"{}\"", wrong.param))) << wrong.body;
  }
}

TEST(ResponsesRequest, CustomTools) {
  const std::string own =
      R"("tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "sh", "description": "d"},
          {"type": "custom", "name": "date", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}}])";
  const std::string chat =
      R"("tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "sh", "description": "d"}},
          {"type": "custom", "custom": {"name": "date", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]+"}}}}])";
  for (
      const auto& [flat, nested] : std::vector<std::pair<std::string, std::string>>{
          {R"("auto")", R"("auto")"},
          {R"({"type": "custom", "name": "sh"})", R"({"type": "custom", "custom": {"name": "sh"}})"},
          {R"({"type": "custom", "name": "date"})", R"({"type": "custom", "custom": {"name": "date"}})"},
          {R"({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "sh"}, {"type": "function", "name": "f"}]})",
           R"({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "custom", "custom": {"name": "sh"}}, {"type": "function", "function": {"name": "f"}}]}})"}})
    expect_same(
        good(parse_responses_request, fmt::format(R"({{"input": "q", "seed": 1, {}, "tool_choice": {}}})", own, flat)),
        fmt::format(R"({{"messages": [{{"role": "user", "content": "q"}}], "seed": 1, {}, "tool_choice": {}}})", chat,
                    nested));
  // An answer's own items come back as they are.
  expect_same(good(parse_responses_request,
                   R"({"input": [{"role": "user", "content": "q"},
              {"type": "custom_tool_call", "id": "ctc_1", "status": "completed", "call_id": "c1", "name": "sh", "input": "ls \"a\""},
              {"type": "custom_tool_call_output", "call_id": "c1", "output": "a b"}], "seed": 1})"),
              R"({"messages": [{"role": "user", "content": "q"},
          {"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "sh", "input": "ls \"a\""}}]},
          {"role": "tool", "tool_call_id": "c1", "content": "a b"}], "seed": 1})");
}

TEST(ResponsesRequest, IsRefusedInItsOwnWords) {
  expect_refused(
      parse_responses_request,
      {{R"({"input": "a", "tools": [{"type": "custom", "name": "t", "format": {"type": "grammar", "syntax": "gbnf", "definition": "x"}}]})",
        "tools[0].format.syntax", "lark"},
       {R"({"input": "a", "tools": [{"type": "custom", "name": "t", "format": {"type": "grammar", "syntax": "regex"}}]})",
        "tools[0].format.definition", "is missing"},
       {R"({"input": "a", "tools": [{"type": "custom", "name": "t"}], "tool_choice": {"type": "function", "name": "t"}})",
        "tool_choice.name", "of the other type"},
       {R"({"input": "a", "tools": [{"type": "custom", "name": "t"}], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "u"}]}})",
        "tool_choice.tools[0].name", "none of the tools"},
       {R"({"input": "a", "tools": [{"type": "custom", "name": "t"}], "tool_choice": {"type": "allowed_tools", "tools": [{"type": "custom", "name": "t"}]}})",
        "tool_choice.mode", "auto"},
       {R"({"input": [{"role": "user", "content": "a"}, {"type": "custom_tool_call", "call_id": "c", "input": "x"}]})",
        "input[1].name", "is missing"},
       {R"({})", "input", "is missing"},
       {R"({"input": []})", "input", "at least one item"},
       {R"({"input": 3})", "input", "a string or a list of items"},
       {R"({"input": ["a"]})", "input[0]", "must be an object"},
       {R"({"input": [{"content": "a"}]})", "input[0].role", "is missing"},
       {R"({"input": [{"role": "user"}]})", "input[0].content", "is missing"},
       {R"({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image"}]}]})",
        "input[0].content[1].type", "the model takes text only"},
       {R"({"input": [{"type": "item_reference", "id": "msg_1"}]})", "input[0].type", "must be one of"},
       {R"({"input": [{"role": "user", "content": "a"}, {"type": "function_call", "call_id": "c", "arguments": "{}"}]})",
        "input[1].name", "is missing"},
       {R"({"input": [{"type": "function_call_output", "call_id": 3, "output": "a"}]})", "input[0].call_id", "string"},
       {R"({"input": [{"type": "function_call_output", "call_id": "c", "output": 3}]})", "input[0].output", "string"},
       {R"({"input": "a", "instructions": 1})", "instructions", "string"},
       {R"({"input": "a", "max_output_tokens": 0})", "max_output_tokens", "at least 1"},
       {R"({"input": "a", "tools": [{"type": "web_search"}]})", "tools[0].type", "function"},
       {R"({"input": "a", "tools": [{"type": "function", "name": "a b"}]})", "tools[0].name", "must be 1 to 64"},
       {R"({"input": "a", "tools": [{"type": "function", "name": "a"}], "tool_choice": {"type": "function", "name": "b"}})",
        "tool_choice.name", "none of the tools"},
       {R"({"input": "a", "tool_choice": "required"})", "tool_choice", "needs \"tools\""},
       {R"({"input": "a", "text": {"format": {"type": "json_schema", "name": "n"}}})", "text.format.schema",
        "is missing"},
       {R"({"input": "a", "text": {"format": {"type": "xml"}}})", "text.format.type", "must be one of"},
       {R"({"input": "a", "store": true})", "store", "not kept"},
       {R"({"input": "a", "background": true})", "background", "not kept"},
       {R"({"input": "a", "previous_response_id": "resp_1"})", "previous_response_id", "not kept"},
       {R"({"input": "a", "conversation": "conv_1"})", "conversation", "not kept"},
       {R"({"input": "a", "prompt": {"id": "pmpt_1"}})", "prompt", "not kept"},
       {R"({"input": "a", "include": ["everything"]})", "include", "may only have"},
       {R"({"input": "a", "top_logprobs": 2})", "top_logprobs", "needs \"include\""},
       {R"({"input": "a", "truncation": "middle"})", "truncation", "auto"},
       {R"({"input": "a", "messages": [{"role": "user", "content": "a"}]})", "messages", "use \"input\""},
       {R"({"input": "a", "temperature": 101})", "temperature", "at most 100"},
       {R"({"input": "a", "n": 2})", "n", "one answer"}});
}

TEST(MessagesRequest, IsToldAsTheChatThatItMeans) {
  expect_same(good(parse_messages_request,
                   R"({"model": "m", "max_tokens": 5, "seed": 1, "messages": [{"role": "user", "content": "hi"}]})"),
              R"({"model": "m", "max_tokens": 5, "seed": 1, "messages": [{"role": "user", "content": "hi"}]})");
  expect_same(
      good(
          parse_messages_request,
          R"({"max_tokens": 5, "seed": 1, "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}], "stop_sequences": ["x", "y"],
           "temperature": 0.5, "top_p": 0.5, "top_k": 7, "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}, "output_config": {"effort": "low"},
           "messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "let me see"},
              {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}, {"type": "tool_use", "id": "t2", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "one"},
              {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "two"}], "is_error": true}, {"type": "text", "text": "and?"}]}]})"),
      R"({"max_tokens": 5, "seed": 1, "stop": ["x", "y"], "temperature": 0.5, "top_p": 0.5, "top_k": 7, "user": "u", "reasoning_effort": "low",
          "chat_template_kwargs": {"enable_thinking": false}, "include_reasoning": false,
          "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "q"},
            {"role": "assistant", "reasoning_content": "hm", "content": "let me see",
             "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                            {"id": "t2", "type": "function", "function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "one", "tool_call_id": "t1"}, {"role": "tool", "content": "two", "tool_call_id": "t2"},
            {"role": "user", "content": "and?"}]})");
  // What the assistant began is continued.
  expect_same(
      good(
          parse_messages_request,
          R"({"max_tokens": 5, "seed": 1, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]})"),
      R"({"max_tokens": 5, "seed": 1, "continue_final_message": true, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]})");
}

TEST(MessagesRequest, Tools) {
  for (const auto& [own, chat] : std::vector<std::pair<std::string, std::string>>{
           {R"({"type": "auto"})", R"("auto", "parallel_tool_calls": true)"},
           {R"({"type": "any", "disable_parallel_tool_use": true})", R"("required", "parallel_tool_calls": false)"},
           {R"({"type": "none"})", R"("none")"},
           {R"({"type": "tool", "name": "f"})", R"({"type": "function", "function": {"name": "f"}})"}})
    expect_same(
        good(
            parse_messages_request,
            fmt::format(
                R"({{"max_tokens": 5, "seed": 1, "messages": [{{"role": "user", "content": "q"}}], "tools": [{{"name": "f", "description": "d", "input_schema": {}}}], "tool_choice": {}}})",
                kWeather, own)),
        fmt::format(
            R"({{"max_tokens": 5, "seed": 1, "messages": [{{"role": "user", "content": "q"}}], "tools": [{{"type": "function", "function": {{"name": "f", "description": "d", "parameters": {}}}}}], "tool_choice": {}}})",
            kWeather, chat));
  expect_same(
      good(
          parse_messages_request,
          fmt::format(
              R"({{"max_tokens": 5, "seed": 1, "messages": [{{"role": "user", "content": "q"}}], "output_config": {{"format": {{"type": "json_schema", "schema": {}}}}}}})",
              kWeather)),
      fmt::format(
          R"({{"max_tokens": 5, "seed": 1, "messages": [{{"role": "user", "content": "q"}}], "response_format": {{"type": "json_schema", "json_schema": {{"schema": {}}}}}}})",
          kWeather));
}

TEST(MessagesRequest, IsRefusedInItsOwnWords) {
  expect_refused(
      parse_messages_request,
      {{R"({"messages": [{"role": "user", "content": "a"}]})", "max_tokens", "is missing"},
       {R"({"max_tokens": 1})", "messages", "at least one message"},
       {R"({"max_tokens": 1, "messages": [{"role": "tool", "content": "a"}]})", "messages[0].role", "user, assistant"},
       {R"({"max_tokens": 1, "system": "s", "messages": [{"role": "user", "content": 3}]})", "messages[0].content",
        "blocks"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]})",
        "messages[0].content[0].type", "the model takes text only"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]})",
        "messages[0].content[0].type", "no such block"},
       {R"({"max_tokens": 1, "system": "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "tool_use", "id": "a", "input": {}}]}]})",
        "messages[1].content[1].name", "is missing"},
       {R"({"max_tokens": 1, "system": "s", "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": 3}]}]})",
        "messages[0].content[0].tool_use_id", "string"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tools": [{"type": "web_search_20250305", "name": "web_search"}]})",
        "tools[0].type", "custom"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]})",
        "tools[0].input_schema", "is missing"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f f", "input_schema": {}}]})",
        "tools[0].name", "must be 1 to 64"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "any"}})",
        "tool_choice", "needs \"tools\""},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "stop": ["a"]})", "stop",
        "stop_sequences"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "mcp_servers": [{}]})", "mcp_servers",
        "no other server"},
       {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "thinking": {"type": "enabled", "budget_tokens": 0}})",
        "thinking.budget_tokens", "must be"}});
}

TEST(MessagesRequest, OfWhichOnlyTheTokensAreAskedFor) {
  const GenerateRequest request = good(
      parse_count_tokens_request, R"({"model": "m", "system": "s", "messages": [{"role": "user", "content": "a"}]})");
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.prompts.at(0).messages.size(), 2u);
}

}  // namespace
}  // namespace lk
