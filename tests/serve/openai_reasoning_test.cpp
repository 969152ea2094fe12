// SPDX-License-Identifier: Apache-2.0
// Thoughts in requests and answers of the OpenAI API.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/serve/openai/openai.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;

ApiResult<GenerateRequest> chat(const std::string& fields, ApiDefaults defaults) {
  return parse_chat_request(R"({"messages": [{"role": "user", "content": "hi"}])" + fields + "}", defaults);
}
ApiDefaults thinking(ReasoningFormat format = ReasoningFormat::kQwen3) {
  return {.context = 1000, .vocab_size = 400, .generation = {}, .reasoning = format};
}

TEST(OpenAiReasoning, Fields) {
  const auto plain = chat("", thinking());
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain.value->reasoning, ReasoningFormat::kQwen3);
  EXPECT_EQ(plain.value->prompts[0].reasoning, ReasoningFormat::kQwen3);
  EXPECT_EQ(plain.value->prompts[0].thinking_budget, -1);
  EXPECT_TRUE(plain.value->include_reasoning);
  const auto all = chat(R"(, "include_reasoning": false, "thinking_token_budget": 0)", thinking());
  ASSERT_TRUE(all.ok());
  EXPECT_FALSE(all.value->include_reasoning);
  EXPECT_EQ(all.value->prompts[0].thinking_budget, 0);
  const auto merged = chat(R"(, "separate_reasoning": false)", thinking());
  EXPECT_TRUE(merged.value->merge_reasoning && merged.value->prompts[0].merge_reasoning);
  EXPECT_EQ(merged.value->reasoning, ReasoningFormat::kQwen3) << "grammars still wait for the end of the thoughts";
  EXPECT_EQ(chat(R"(, "thinking_token_budget": -1)", thinking()).error.param, "thinking_token_budget");
  EXPECT_EQ(parse_completion_request(R"({"prompt": "x", "thinking_token_budget": 5})", thinking()).error.param,
            "thinking_token_budget");
}

TEST(OpenAiReasoning, OfTheTemplateThatRendersThePrompt) {
  const auto templates = [](const char* source) {
    return ChatTemplates::of(ChatTemplate::parse(source, "test").value());
  };
  ApiDefaults defaults = thinking(ReasoningFormat::kGranite);
  defaults.reasoning_templates = templates("{{ '<think>' }}");
  EXPECT_EQ(chat("", defaults).value->reasoning, ReasoningFormat::kQwen3);
  defaults.reasoning_templates = templates("{{ messages }}");
  EXPECT_EQ(chat("", defaults).value->reasoning, ReasoningFormat::kNone) << "another template does not think";
}

Completion answer(const std::string& thoughts, const std::string& text, FinishReason finish = FinishReason::kStop) {
  Completion completion{.text = text, .token_ids = {1, 2, 3, 4}, .finish = finish, .prompt_tokens = 2};
  completion.reasoning = thoughts;
  completion.reasoning_tokens = 3;
  return completion;
}

json::object response(const Completion& completion, const std::string& fields = "") {
  AnswerFormatter formatter(*chat(fields, thinking()).value, "id", 7, "m", nullptr, ToolFormat::kNone);
  return json::parse(formatter.response({completion})).as_object();
}

TEST(OpenAiReasoning, Answers) {
  const json::object whole = response(answer("Hm \"x\".", "Riga"));
  const json::object& message = whole.at("choices").at(0).at("message").as_object();
  EXPECT_EQ(message.at("content"), "Riga");
  EXPECT_EQ(message.at("reasoning"), "Hm \"x\".");
  EXPECT_EQ(message.at("reasoning_content"), "Hm \"x\".");
  EXPECT_EQ(whole.at("usage").at("completion_tokens_details").at("reasoning_tokens"), 3);
  const json::object hidden = response(answer("Hm.", "Riga"), R"(, "include_reasoning": false)");
  EXPECT_FALSE(hidden.at("choices").at(0).at("message").as_object().contains("reasoning"));
  EXPECT_EQ(hidden.at("usage").at("completion_tokens_details").at("reasoning_tokens"), 3);
  const json::object cut = response(answer("Hm.", "", FinishReason::kLength));
  EXPECT_TRUE(cut.at("choices").at(0).at("message").at("content").is_null());
  EXPECT_EQ(cut.at("choices").at(0).at("finish_reason"), "length");
  AnswerFormatter formatter(*chat("", thinking(ReasoningFormat::kNone)).value, "id", 7, "m", nullptr,
                            ToolFormat::kNone);
  EXPECT_EQ(formatter.response({answer("", "Riga")}).find("reasoning"), std::string::npos);
}

TEST(OpenAiReasoning, Streams) {
  const std::string options = R"(, "stream": true, "stream_options": {"include_usage": true})";
  for (const bool shown : {true, false}) {
    AnswerFormatter formatter(*chat(options + (shown ? "" : R"(, "include_reasoning": false)"), thinking()).value, "id",
                              7, "m", nullptr, ToolFormat::kNone);
    StreamDelta first{.text = "", .tokens = {{.token = 1}}},
        second{.text = "Ri", .tokens = {{.token = 2}, {.token = 3}}};
    first.reasoning = "Hm";
    first.reasoning_tokens = 1;
    second.reasoning = ".";
    second.reasoning_tokens = 2;
    std::string stream = formatter.delta(0, first);
    stream += formatter.delta(0, second);
    EXPECT_EQ(stream.find(R"("delta":{"reasoning":"Hm","reasoning_content":"Hm"})") != stream.npos, shown) << stream;
    const size_t thought = stream.find(R"("reasoning":".")"), text = stream.find(R"("content":"Ri")");
    EXPECT_EQ(thought != stream.npos, shown);
    EXPECT_TRUE(!shown || thought < text);
    std::string end = formatter.done(0, answer("Hm.", "Riga"));
    end += formatter.end();
    EXPECT_EQ(end.find("\"reasoning\":"), end.npos) << "nothing twice";
    EXPECT_NE(end.find(R"("content":"ga")"), end.npos);
    EXPECT_NE(end.find(R"("completion_tokens_details":{"reasoning_tokens":3})"), end.npos);
  }
}

// Form only: all of the text, as it was written, is in the content; what is bound, and calls, come behind the thoughts.
TEST(OpenAiReasoning, MergedIsTheWholeText) {
  for (const std::string whole :
       {"<think>\na </thi\n</think>\n\nRiga", " <think>cut", "no thoughts", "\n<thi", "<thing>"})
    for (const ThinkingStart start : {ThinkingStart::kMayThink, ThinkingStart::kThinking, ThinkingStart::kAnswering})
      for (const int64_t budget : {-1, 3}) {
        TextSequence sequence;
        sequence.text.reasoning = ReasoningFormat::kQwen3;
        sequence.text.thinking_start = start;
        sequence.text.merge_reasoning = true;
        sequence.text.thinking_budget = budget;
        ASSERT_TRUE(sequence.begin_text(testing::byte_tokenizer()).ok());
        std::string shown;
        for (const int32_t token : testing::byte_tokens(whole)) {
          sequence.add({.token = token}, false);
          shown += sequence.take_reasoning();
          shown += sequence.take_text();
        }
        sequence.end(FinishReason::kLength, Status());
        shown += sequence.take_reasoning();
        shown += sequence.take_text();
        EXPECT_EQ(shown, whole) << static_cast<int>(start);
        EXPECT_EQ(sequence.completion.reasoning + sequence.completion.text, whole);
      }
  const json::object answered = response(answer("<think>Hm.</think>\n", "Riga"), R"(, "separate_reasoning": false)");
  const json::object& message = answered.at("choices").at(0).at("message").as_object();
  EXPECT_EQ(message.at("content"), "<think>Hm.</think>\nRiga");
  EXPECT_FALSE(message.contains("reasoning"));
}

// Of a mark that a budget forces and max_tokens cuts nothing shows.
TEST(OpenAiReasoning, HalfOfAForcedMarkIsNoThought) {
  TextSequence sequence;
  sequence.text.reasoning = ReasoningFormat::kQwen3;
  sequence.text.thinking_start = ThinkingStart::kThinking;
  sequence.text.thinking_budget = 3;
  ASSERT_TRUE(sequence.begin_text(testing::byte_tokenizer()).ok());
  for (const int32_t token : testing::byte_tokens("abc</thi")) sequence.add({.token = token}, false);
  sequence.end(FinishReason::kLength, Status());
  EXPECT_EQ(sequence.completion.reasoning, "abc");
}

// Stop strings end answers, not thoughts.
TEST(OpenAiReasoning, StopStringsAreOfTheAnswer) {
  TextSequence sequence;
  sequence.text.stop = {"\n\n"};
  sequence.text.reasoning = ReasoningFormat::kQwen3;
  ASSERT_TRUE(sequence.begin_text(testing::byte_tokenizer()).ok());
  std::string thoughts, answer;
  bool stopped = false;
  for (const int32_t token : testing::byte_tokens("<think>a\n\nb</think>\n\nc\n\nd")) {
    stopped = sequence.add({.token = token}, false);
    thoughts += sequence.take_reasoning();
    answer += sequence.take_text();
    if (stopped) break;
  }
  EXPECT_TRUE(stopped);
  sequence.end(FinishReason::kStop, Status());
  EXPECT_EQ(thoughts, "a\n\nb");
  EXPECT_EQ(answer + sequence.take_text(), "c");
  EXPECT_EQ(sequence.completion.reasoning_tokens, 19) << "with their marks";
}

}  // namespace
}  // namespace lk
