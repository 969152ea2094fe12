// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dataset/dataset_util.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using testing::fixture_template;
using testing::fixture_tokenizer;
using ::testing::HasSubstr;
using testing::parse_template;
using testing::record_of;
using testing::shown;

const char* const kTwoTurns =
    R"({"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
  {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]})";

std::string shown_with(const std::string& tokenizer_name, const std::shared_ptr<const ChatTemplates>& chat,
                       const Record& record, const RenderOptions& options = {}) {
  const auto tokenizer = fixture_tokenizer(tokenizer_name);
  return shown(Renderer(tokenizer, chat, tokenizer->token_to_id("<|im_end|>"), options), record, tokenizer);
}

TEST(Render, TheAssistantsTokensAndTheEndOfItsTurnHaveALoss) {
  EXPECT_EQ(shown_with("qwen", fixture_template("chatml"), record_of(kTwoTurns)),
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n[[a1<|im_end|>]]\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[[a2<|im_end|>]]\n");
  EXPECT_EQ(shown_with("llama3", fixture_template("llama3"), record_of(kTwoTurns)),
            "<s><|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[[a1<|eot_id|>]]"
            "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[[a2<|eot_id|>]]");
  EXPECT_EQ(shown_with("llama2", fixture_template("llama2"), record_of(kTwoTurns)),
            "<s> [INST] q1 [/INST][[ a1 </s>]]<s> [INST] q2 [/INST][[ a2 </s>]]");
  EXPECT_EQ(shown_with("mistral", fixture_template("mistral1"), record_of(kTwoTurns)),
            "<s>[INST] q1 [/INST][[a1</s>]] [INST] q2 [/INST][[a2</s>]] ");
}

TEST(Render, WeightsHistoryAndPrompts) {
  const auto chat = fixture_template("chatml");
  const std::string weighted =
      R"({"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1", "weight": 0},
        {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2", "weight": 0.5}]})";
  EXPECT_EQ(shown_with("qwen", chat, record_of(weighted)),
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[[a2<|im_end|>]]*0.5\n");
  EXPECT_EQ(shown_with("qwen", chat, record_of(kTwoTurns), {.mask_history = true}),
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[[a2<|im_end|>]]\n");
  // The first token cannot be predicted.
  EXPECT_EQ(shown_with("qwen", chat, record_of(weighted), {.train_on_prompt = true}),
            "<|im_start|>[[user\nq1<|im_end|>\n<|im_start|>assistant\n]]a1<|im_end|>[[\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n]][[a2<|im_end|>]]*0.5[[\n]]");
}

// What is given has no loss, unless all has; a turn that was taken out stays out.
TEST(Render, PromptsOfMessages) {
  const auto chat = fixture_template("chatml");
  const std::string line =
      R"({"prompt": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
                     {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2", "weight": 0},
                     {"role": "user", "content": "q3"}],
          "completion": [{"role": "assistant", "content": "a3"}]})";
  const Record record = record_of(line, RecordFormat::kCompletion);
  const std::string before = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n";
  const std::string between = "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n";
  EXPECT_EQ(shown_with("qwen", chat, record),
            before + between + "<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\n[[a3<|im_end|>]]\n");
  EXPECT_EQ(shown_with("qwen", chat, record, {.train_on_prompt = true}),
            "<|im_start|>[[user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n]]a2<|im_end|>[[\n"
            "<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\na3<|im_end|>\n]]");
}

TEST(Render, TemplatesThatPrintEarlierTurnsInAnotherWay) {
  const auto chat = fixture_template("qwen3");
  const Record thinking = record_of(
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nt1\n</think>\n\nq"},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nt2\n</think>\n\na2"}]})");
  EXPECT_EQ(shown_with("qwen", chat, thinking),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[q<|im_end|>]]\n"
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[<think>\nt2\n</think>\n\na2<|im_end|>]]\n");
  // The tools stand before the last question, so no earlier turn is a prefix.
  const std::string tools = R"(, "tools": [{"type": "function", "function": {"name": "f"}}]})";
  std::string line = kTwoTurns;
  line.pop_back();
  EXPECT_EQ(
      shown_with("mistral", fixture_template("mistral3"), record_of(line + tools)),
      "<s>[INST] q1[/INST][[ a1</s>]][AVAILABLE_TOOLS] [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]"
      "[/AVAILABLE_TOOLS][INST] q2[/INST][[ a2</s>]]");
  // Calls in such turns: Qwen3 prints an empty thought before the last turn only.
  const Record calling = record_of(R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
      {"role": "tool", "content": "3"},
      {"role": "assistant", "content": "wait", "tool_calls": [{"function": {"name": "g", "arguments": {}}}]},
      {"role": "tool", "content": "4"}, {"role": "assistant", "content": "a"}]})");
  EXPECT_EQ(
      shown_with("qwen", chat, calling),
      "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[<tool_call>\n{\"name\": \"f\", \"arguments\": "
      "{\"a\": 1}}\n</tool_call><|im_end|>]]\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
      "<|im_start|>assistant\n[[wait\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call><|im_end|>]]\n"
      "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
      "<|im_start|>assistant\n[[<think>\n\n</think>\n\na<|im_end|>]]\n");
  // What prints its last message in another place cannot be told apart.
  const auto turned = parse_template("{% for m in messages|reverse %}{{ m.content }};{{ m.content }}{% endfor %}");
  EXPECT_THAT(shown_with("qwen", turned, record_of(kTwoTurns)),
              HasSubstr("t.jsonl:1: messages[1]: what the chat template prints for this turn"));
}

TEST(Render, ACallThatTheTemplateDoesNotPrintIsAnError) {
  const std::string call = R"("content": "", "tool_calls": [{"function": {"name": "f"}}]})";
  const std::string begin = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", )";
  const auto chat = fixture_template("chatml");
  EXPECT_THAT(shown_with("qwen", chat, record_of(begin + call + "]}")),
              HasSubstr("t.jsonl:1: messages[1]: the chat template does not print the call of \"f\""));
  const auto marking =
      parse_template("{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}");
  EXPECT_THAT(shown_with("qwen", marking, record_of(R"({"messages": [{"role": "assistant", )" + call + "]}")),
              HasSubstr("does not print the call"));
  // Of a turn without loss it does not matter.
  EXPECT_EQ(shown_with("qwen", chat,
                       record_of(begin + R"("weight": 0, )" + call + R"(, {"role": "assistant", "content": "a"}]})")),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
            "<|im_start|>assistant\n[[a<|im_end|>]]\n");
}

TEST(Render, GenerationMarksGoFirstAndTakeTheEndToken) {
  const auto chat = parse_template(
      "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{% endgeneration %}"
      "<|im_end|>\n{% else %}U:{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}");
  EXPECT_EQ(shown_with("qwen", chat, record_of(kTwoTurns)),
            "U:q1<|im_end|>\nA:[[a1<|im_end|>]]\nU:q2<|im_end|>\nA:[[a2<|im_end|>]]\n");
  EXPECT_EQ(shown_with("qwen", chat, record_of(kTwoTurns), {.mask_history = true}),
            "U:q1<|im_end|>\nA:a1<|im_end|>\nU:q2<|im_end|>\nA:[[a2<|im_end|>]]\n");
  // As transformers' mask, a mark around the line break behind the end token counts.
  const auto wide = parse_template(
      "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}<|im_end|>\n"
      "{% endgeneration %}{% else %}<|im_start|>{{ m.content }}{% endif %}{% endfor %}");
  EXPECT_EQ(shown_with("qwen", wide, record_of(kTwoTurns)),
            "<|im_start|>q1A:[[a1<|im_end|>\n]]<|im_start|>q2A:[[a2<|im_end|>\n]]");
  const auto once = parse_template("{% generation %}{{ messages[-1].content }}{% endgeneration %}");
  EXPECT_THAT(shown_with("qwen", once, record_of(kTwoTurns)), HasSubstr("marks 1 generations for 2 turns"));
}

TEST(Render, ATokenAcrossTheBorderIsTrained) {
  // "he" is one token.
  EXPECT_EQ(shown_with("qwen", nullptr, record_of(R"({"prompt": "xh", "completion": "e"})", RecordFormat::kCompletion)),
            "x[[he<|im_end|>]]");
}

TEST(Render, CompletionsAndTextsEndWithTheEndToken) {
  const Record completion = record_of(R"({"prompt": "1+1=", "completion": "2"})", RecordFormat::kCompletion);
  EXPECT_EQ(shown_with("qwen", nullptr, completion), "1+1=[[2<|im_end|>]]");
  EXPECT_EQ(shown_with("qwen", nullptr, record_of(R"({"text": "abc"})", RecordFormat::kText)).substr(0, 1), "a");
  // The tokenizer's own start token, once, and no second end.
  const auto llama2 = fixture_tokenizer("llama2");
  const Renderer renderer(llama2, nullptr, llama2->token_to_id("</s>"), {});
  EXPECT_EQ(shown(renderer, completion, llama2), "<s> 1+1=[[2</s>]]");
  EXPECT_EQ(shown(renderer, record_of(R"({"text": "a b</s>"})", RecordFormat::kText), llama2), "<s>[[ a b</s>]]");
  EXPECT_EQ(shown(renderer, record_of(R"({"prompt": "a", "completion": ""})", RecordFormat::kCompletion), llama2),
            "<s> a[[</s>]]");
}

TEST(Render, ModelsWithoutTemplate) {
  const Record alpaca = record_of(R"({"instruction": "x", "output": "y"})", RecordFormat::kAlpaca);
  EXPECT_THAT(shown_with("qwen", nullptr, alpaca), HasSubstr("### Response:[[y<|im_end|>]]"));
  EXPECT_EQ(shown_with("qwen", fixture_template("chatml"), alpaca),
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n[[y<|im_end|>]]\n");
  EXPECT_THAT(shown_with("qwen", nullptr, record_of(kTwoTurns)),
              HasSubstr("t.jsonl:1: the model has no chat template"));
}

TEST(Render, LongSamples) {
  const auto tokenizer = fixture_tokenizer("gpt2");
  const auto render = [&](int64_t max_length, LongSamples policy, const char* line) {
    const RenderOptions options{.max_length = max_length, .long_samples = policy};
    return Renderer(tokenizer, nullptr, 700, options).render(record_of(line, RecordFormat::kCompletion), "t.jsonl:1");
  };
  const char* const line = R"({"prompt": "qx", "completion": "qxq"})";  // five tokens and the end
  EXPECT_FALSE((**render(6, LongSamples::kError, line)).truncated);
  EXPECT_THAT(render(5, LongSamples::kError, line).status().message(),
              HasSubstr("t.jsonl:1: the sample has 6 tokens, max_length is 5"));
  EXPECT_FALSE(render(5, LongSamples::kDrop, line)->has_value());
  const auto cut = render(4, LongSamples::kTruncate, line);
  EXPECT_TRUE((**cut).truncated);
  EXPECT_THAT((**cut).weights, ElementsAre(0, 0, 1, 1));
  EXPECT_FALSE(render(2, LongSamples::kTruncate, line)->has_value());  // nothing to learn is left
}

TEST(Render, ASampleWithoutLossIsAnError) {
  const std::string masked =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]})";
  EXPECT_THAT(shown_with("qwen", fixture_template("chatml"), record_of(masked)),
              HasSubstr("t.jsonl:1: no token of the sample has a loss"));
  const auto tokenizer = fixture_tokenizer("gpt2");
  EXPECT_THAT(
      shown(Renderer(tokenizer, nullptr, {}, {}), record_of(R"({"text": "1"})", RecordFormat::kText), tokenizer),
      HasSubstr("no token of the sample has a loss"));  // one token, and nothing that predicts it
}

TEST(Render, ARecordIsAQuestionToTheModel) {
  const auto tokenizer = fixture_tokenizer("llama2");
  const auto ask = [&](const std::shared_ptr<const ChatTemplates>& chat, const Record& record) {
    const auto found = Renderer(tokenizer, chat, {}, {}).exercise(record, "t.jsonl:1");
    return found.ok() ? tokenizer->decode(found->prompt, false) + " -> " + found->answer : found.status().message();
  };
  const auto chat = fixture_template("llama2");
  EXPECT_EQ(ask(chat, record_of(kTwoTurns)), "<s> [INST] q1 [/INST] a1 </s><s> [INST] q2 [/INST] -> a2");
  EXPECT_EQ(ask(chat, record_of(R"({"prompt": "x", "completion": "y"})", RecordFormat::kCompletion)), "<s> x -> y");
  EXPECT_THAT(ask(nullptr, record_of(R"({"instruction": "x", "output": "y"})", RecordFormat::kAlpaca)),
              HasSubstr("### Response: -> y"));
  EXPECT_THAT(ask(nullptr, record_of(kTwoTurns)), HasSubstr("no chat template"));
  EXPECT_THAT(ask(chat, record_of(R"({"text": "x"})", RecordFormat::kText)), HasSubstr("no answer to compare with"));
}

TEST(Render, AnAnswerThatNoServerWouldEndIsFound) {
  const auto tokenizer = fixture_tokenizer("qwen");
  const int32_t turn_end = *tokenizer->token_to_id("<|im_end|>");
  const auto ends = [&](const std::vector<int32_t>& known, const std::string& last) {
    const auto chat = parse_template("{% for m in messages %}{{ m.content }}" + last + "{% endfor %}");
    const Renderer renderer(tokenizer, chat, {}, {.answer_ends = known});
    const auto sample = renderer.render(record_of(kTwoTurns), "t.jsonl:1");
    return renderer.ends_answer(**sample);
  };
  EXPECT_TRUE(ends({turn_end}, "<|im_end|>"));
  EXPECT_TRUE(ends({}, "."));
  EXPECT_FALSE(ends({turn_end + 1}, "<|im_end|>"));
  EXPECT_FALSE(ends({turn_end}, "."));
}

TEST(Render, ARecordMaySetVariablesOfTheTemplate) {
  const auto chat = parse_template("{% for m in messages %}{{ m.content }}{{ mood }}<|im_end|>{% endfor %}");
  EXPECT_EQ(shown_with("qwen", chat, record_of(R"({"messages": [{"role": "assistant", "content": "a"}],
                                                   "chat_template_kwargs": {"mood": "!"}})")),
            "a[[!<|im_end|>]]");
}

TEST(Render, TheDateOfATemplateIsFixed) {
  const auto chat = parse_template("{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}");
  const Record record =
      record_of(R"({"messages": [{"role": "user", "content": ":"}, {"role": "assistant", "content": "x"}]})");
  EXPECT_EQ(shown_with("qwen", chat, record), "26 Jul 2024:[[x]]");
  EXPECT_EQ(shown_with("qwen", chat, record, {.now_unix = 1760000000}), "09 Oct 2025:[[x]]");
}

TEST(Preview, ColoursAndControlCharacters) {
  const auto tokenizer = fixture_tokenizer("gpt2");
  const auto ids = *tokenizer->encode(
      "a\x1b[2J\xf0\x9f\xa6\x9c"
      "b",
      false);
  Sample sample{.ids = ids, .weights = std::vector<float>(ids.size(), 0)};
  sample.weights.back() = 1;
  EXPECT_EQ(preview_sample(sample, *tokenizer, false), "a\\x1B[2J\xf0\x9f\xa6\x9c[[b]]\n");
  EXPECT_EQ(preview_sample(sample, *tokenizer, true), "\033[2ma\\x1B[2J\xf0\x9f\xa6\x9c\033[0m\033[1;32mb\033[0m\n");
}

}  // namespace
}  // namespace lk
