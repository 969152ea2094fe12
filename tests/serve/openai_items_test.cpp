// SPDX-License-Identifier: Apache-2.0
// Answers of the Responses and the Messages API: however the text comes in pieces, the events add up to the object that
// a request without a stream gets.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/infer/request_fields.h"
#include "lk/serve/openai/answer_size.h"
#include "lk/serve/openai/openai.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;

const ApiDefaults kDefaults{.context = 4096, .vocab_size = 400, .tool_format = ToolFormat::kHermes};
constexpr const char* kShell = R"(<tool_call>{"name": "sh", "arguments": {"input": "ls \"a\"\n\u00e9"}}</tool_call>)";
constexpr const char* kCall = R"(<tool_call>{"name": "f", "arguments": {"a": "e"}}</tool_call>)";

GenerateRequest responses(std::string_view more = "") {
  return *parse_responses_request(
              fmt::format(
                  R"({{"input": "q", "tools": [{{"type": "function", "name": "f"}}, {{"type": "custom", "name": "sh"}}]{}}})",
                  more),
              kDefaults)
              .value;
}
GenerateRequest messages(std::string_view more = "") {
  return *parse_messages_request(
              fmt::format(
                  R"({{"max_tokens": 999, "messages": [{{"role": "user", "content": "q"}}], "tools": [{{"name": "f", "input_schema": {{}}}}]{}}})",
                  more),
              kDefaults)
              .value;
}

struct Asked {
  GenerateRequest request;
  Completion completion;
  std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();

  AnswerFormatter formatter() const {
    const bool items = request.endpoint == Endpoint::kResponses;
    return {request, items ? "resp_id" : "msg_id", 7, "m", tokenizer.get(), request.tool_format};
  }
  json::object whole() const { return json::parse(formatter().response({completion})).as_object(); }

  // Its tokens are its bytes.
  static Asked of(GenerateRequest request, const std::string& text, const std::string& thoughts = "") {
    Completion completion{.text = text,
                          .reasoning = thoughts,
                          .token_ids = testing::byte_tokens(thoughts + text),
                          .finish = FinishReason::kStop,
                          .prompt_tokens = 20,
                          .cached_tokens = 16,
                          .reasoning_tokens = std::ssize(thoughts)};
    for (const int32_t token : completion.token_ids)
      completion.logprobs.push_back({.token = token, .logprob = -0.25F, .rank = 1, .top = {}});
    return {std::move(request), std::move(completion)};
  }

  std::vector<json::object> events(size_t piece) const {
    AnswerFormatter formatter = this->formatter();
    std::string out = formatter.begin(0, completion);
    const auto feed = [&](const std::string& text, bool thought) {
      for (size_t i = 0; i < text.size(); i += piece) {
        StreamDelta delta;
        (thought ? delta.reasoning : delta.text) = text.substr(i, piece);
        const size_t first = thought ? i : completion.reasoning.size() + i;
        for (size_t k = first; k < first + std::min(piece, text.size() - i); ++k)
          delta.tokens.push_back(completion.logprobs[k]);
        delta.reasoning_tokens =
            thought ? static_cast<int64_t>(std::min(i + piece, text.size())) : completion.reasoning_tokens;
        out += formatter.delta(0, delta);
      }
    };
    feed(completion.reasoning, true);
    feed(completion.text, false);
    out += formatter.done(0, completion);
    EXPECT_EQ(formatter.end(), "");
    std::vector<json::object> events;
    while (!out.empty()) {
      const size_t end = out.find("\n\n"), line = out.find("\ndata: ");
      EXPECT_TRUE(out.starts_with("event: ") && line < end) << out;
      events.push_back(json::parse(out.substr(line + 7, end - line - 7)).as_object());
      EXPECT_EQ(std::string(events.back().at("type").as_string()), out.substr(7, line - 7));
      out.erase(0, end + 2);
    }
    return events;
  }
};

const std::vector<std::pair<std::string, std::string>> kTexts = {
    {"plain text", ""},
    {"answer", "thought"},
    {kCall, ""},
    {kCall, "thought"},
    {std::string("let me see") + kCall + kCall, "thought"},
    {std::string(kCall) + "and then", ""},
    {"", ""},
    {std::string(kShell) + kCall + kShell, "thought"},
    {R"(<tool_call>{"name": "sh", "arguments": {"input": ""}}</tool_call>)", ""},
    {R"(<tool_call>{"name": "sh", "arguments": {"in": 3}}</tool_call>)", ""},
    {R"(<tool_call>{"name": "f", "arguments": {"a": )", ""}};

TEST(ResponsesItems, EventsAddUpToTheObject) {
  for (const char* more : {"", R"(, "include": ["message.output_text.logprobs"])", R"(, "parallel_tool_calls": false)"})
    for (const auto& [text, thoughts] : kTexts)
      for (const size_t piece : {1, 3, 100}) {
        SCOPED_TRACE(fmt::format("{} {} in pieces of {}{}", thoughts, text, piece, more));
        const Asked asked = Asked::of(responses(more), text, thoughts);
        const json::object whole = asked.whole();
        const std::vector<json::object> events = asked.events(piece);
        json::array built;
        for (size_t i = 0; i < events.size(); ++i) {
          const json::object& event = events[i];
          EXPECT_EQ(event.at("sequence_number"), static_cast<int64_t>(i));
          const std::string type(event.at("type").as_string());
          if (type == "response.output_item.added") {
            EXPECT_EQ(event.at("output_index"), built.size());
            built.push_back(json::object{{"text", ""}});
          }
          if (type.ends_with(".delta")) {
            json::value& sum = built.at(event.at("output_index").to_number<size_t>()).at("text");
            sum = std::string(sum.as_string()) + std::string(event.at("delta").as_string());
          }
          if (type == "response.output_item.done") {
            EXPECT_EQ(event.at("item").at("id"), whole.at("output").at(built.size() - 1).at("id"));
          }
        }
        ASSERT_EQ(built.size(), whole.at("output").as_array().size());
        for (size_t i = 0; i < built.size(); ++i) {
          const json::object& item = whole.at("output").at(i).as_object();
          const json::value& said = item.contains("arguments") ? item.at("arguments")
                                    : item.contains("input")   ? item.at("input")
                                                               : item.at("content").at(0).at("text");
          EXPECT_EQ(built[i].at("text"), said);
        }
        json::object last = events.back().at("response").as_object();
        json::object expected = whole;
        // Which token belongs to what depends on the pieces where calls follow.
        if (text.find("<tool_call>") != std::string::npos)
          for (json::object* object : {&last, &expected})
            for (json::value& item : object->at("output").as_array())
              if (item.at("type") == "message") item.at("content").at(0).as_object().erase("logprobs");
        EXPECT_EQ(json_text(last), json_text(expected));
        EXPECT_EQ(events.back().at("type"), "response.completed");
      }
}

TEST(ResponsesItems, ACustomToolsCallIsItsInput) {
  const Asked asked = Asked::of(responses(), kShell);
  const json::object whole = asked.whole();
  ASSERT_EQ(whole.at("output").as_array().size(), 1u);
  const json::object& item = whole.at("output").at(0).as_object();
  EXPECT_EQ(item.at("type"), "custom_tool_call");
  EXPECT_EQ(item.at("name"), "sh");
  EXPECT_EQ(item.at("input"), "ls \"a\"\n\xc3\xa9");
  EXPECT_FALSE(item.at("call_id").as_string().empty());
  std::vector<std::string> types;
  for (const json::object& event : asked.events(7)) types.emplace_back(event.at("type").as_string());
  EXPECT_NE(std::ranges::find(types, "response.custom_tool_call_input.delta"), types.end());
  EXPECT_EQ(std::ranges::count(types, "response.custom_tool_call_input.done"), 1);
  EXPECT_EQ(std::ranges::count(types, "response.function_call_arguments.delta"), 0);
}

// A grammar may allow the empty text.
TEST(ResponsesItems, AForcedInputMayBeEmpty) {
  const auto parsed = parse_responses_request(
      R"({"input": "q", "tools": [{"type": "custom", "name": "sh", "format": {"type": "grammar", "syntax": "regex", "definition": "a*"}}],
          "tool_choice": {"type": "custom", "name": "sh"}})",
      kDefaults);
  ASSERT_TRUE(parsed.ok()) << parsed.error.message;
  for (const char* text : {"", "aa"}) {
    const Asked asked = Asked::of(*parsed.value, text);
    const json::object whole = asked.whole();
    ASSERT_EQ(whole.at("output").as_array().size(), 1u) << json_text(whole);
    EXPECT_EQ(whole.at("output").at(0).at("type"), "custom_tool_call");
    EXPECT_EQ(whole.at("output").at(0).at("input"), text);
    EXPECT_EQ(json_text(asked.events(1).back().at("response").at("output")), json_text(whole.at("output")));
  }
}

TEST(ResponsesItems, WhatWasCutIsIncomplete) {
  Asked asked = Asked::of(responses(), R"(let me see<tool_call>{"name": "f", "arguments": {"a": )");
  asked.completion.finish = FinishReason::kLength;
  const json::object whole = asked.whole();
  EXPECT_EQ(whole.at("status"), "incomplete");
  EXPECT_EQ(whole.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(whole.at("output").at(0).at("status"), "completed");
  EXPECT_EQ(whole.at("output").at(1).at("status"), "incomplete");
  EXPECT_EQ(whole.at("output").at(1).at("arguments"), "{\"a\": ");
  EXPECT_EQ(asked.events(2).back().at("type"), "response.incomplete");
}

TEST(ResponsesItems, AFailureIsAnEventWithWhatThereIs) {
  const Asked asked = Asked::of(responses(), "abc");
  AnswerFormatter formatter = asked.formatter();
  (void)formatter.delta(0, {.text = "ab", .tokens = {}});
  const std::string failed = formatter.error({.status = 503, .message = "gone"});
  ASSERT_TRUE(failed.starts_with("event: response.failed\ndata: ")) << failed;
  const json::value event = json::parse(failed.substr(failed.find("data: ") + 6));
  EXPECT_EQ(event.at("sequence_number"), 5);  // created, in_progress, item, part, delta
  EXPECT_EQ(event.at("response").at("status"), "failed");
  EXPECT_EQ(event.at("response").at("error").at("message"), "gone");
  EXPECT_EQ(event.at("response").at("output").at(0).at("content").at(0).at("text"), "ab");
  EXPECT_EQ(formatter.error({.message = "again"}), "");
}

TEST(MessagesItems, EventsAddUpToTheObject) {
  for (const auto& [text, thoughts] : kTexts)
    for (const size_t piece : {1, 3, 100}) {
      SCOPED_TRACE(fmt::format("{} {} in pieces of {}", thoughts, text, piece));
      const Asked asked = Asked::of(messages(), text, thoughts);
      const json::object whole = asked.whole();
      json::array built;
      json::object message;
      for (const json::object& event : asked.events(piece)) {
        const json::value& type = event.at("type");
        if (type == "message_start") message = event.at("message").as_object();
        if (type == "content_block_start") {
          EXPECT_EQ(event.at("index"), built.size());
          built.push_back(event.at("content_block"));
          if (built.back().at("type") == "tool_use") built.back().as_object()["input"] = "";
        }
        if (type == "content_block_delta") {
          const json::object& delta = event.at("delta").as_object();
          json::object& block = built.at(event.at("index").to_number<size_t>()).as_object();
          const bool use = delta.contains("partial_json");
          json::value& sum = block[use ? "input" : block.at("type").as_string()];
          sum = std::string(sum.as_string()) +
                std::string(delta.at(use ? "partial_json" : block.at("type").as_string()).as_string());
        }
        if (type == "message_delta") {
          for (const auto& [key, value] : event.at("delta").as_object()) message[key] = value;
          message["usage"] = event.at("usage");
        }
      }
      for (json::value& block : built) {
        if (block.at("type") != "tool_use") continue;
        json::value& input = block.as_object()["input"];
        boost::system::error_code broken;
        json::value parsed = json::parse(input.as_string(), broken);
        input = broken ? json::value{{"INVALID_JSON", input}} : parsed;
      }
      message["content"] = built;
      EXPECT_EQ(json_text(message), json_text(whole));
      EXPECT_EQ(whole.at("usage").at("input_tokens"), 4);
      EXPECT_EQ(whole.at("usage").at("cache_read_input_tokens"), 16);
    }
}

TEST(MessagesItems, ReasonsToStop) {
  const auto reason = [](const std::string& text, auto change) {
    Asked asked = Asked::of(messages(), text);
    change(asked);
    return json_text(asked.whole().at("stop_reason")) + json_text(asked.whole().at("stop_sequence"));
  };
  EXPECT_EQ(reason("a", [](Asked&) {}), R"("end_turn"null)");
  EXPECT_EQ(reason(kCall, [](Asked&) {}), R"("tool_use"null)");
  EXPECT_EQ(reason("a", [](Asked& asked) { asked.completion.stop_string = "b"; }), R"("stop_sequence""b")");
  EXPECT_EQ(reason("a", [](Asked& asked) { asked.completion.finish = FinishReason::kLength; }),
            R"("model_context_window_exceeded"null)");
  EXPECT_EQ(reason("a",
                   [](Asked& asked) {
                     asked.completion.finish = FinishReason::kLength;
                     asked.request.prompts[0].max_tokens = 1;
                   }),
            R"("max_tokens"null)");
  // Of a call that was cut off nothing is known for sure.
  Asked cut = Asked::of(messages(), R"(<tool_call>{"name": "f", "arguments": {"a": )");
  cut.completion.finish = FinishReason::kLength;
  EXPECT_EQ(json_text(cut.whole().at("content").at(0).at("input")), "{}");
}

TEST(AnswerSize, OfItemsCountsWhatIsRepeated) {
  const GenerateRequest plain = responses(),
                        with = responses(fmt::format(R"(, "instructions": "{}")", std::string(9000, 'a')));
  const auto fixed = [](const GenerateRequest& request) {
    return answer_size(request, request.prompts[0], 1, 1).fixed;
  };
  EXPECT_GE(fixed(with), fixed(plain) + 8990);
  GenerateRequest stream = with;
  stream.stream = true;
  EXPECT_GE(fixed(stream), fixed(plain) + 3 * 8990);
}

}  // namespace
}  // namespace lk
