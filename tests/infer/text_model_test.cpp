// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_model.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/io/model_config.h"

namespace lk {
namespace {

Result<std::unique_ptr<TextSequence>> prepare(const TextModel& model, TextRequest request) {
  auto sequence = std::make_unique<TextSequence>();
  LK_RETURN_IF_ERROR(model.prepare(std::move(request), *sequence));
  return sequence;
}

using ::testing::HasSubstr;

constexpr const char* kDirectory = "examples/demo/model";

class TextModelTest : public ::testing::Test {
 protected:
  static std::shared_ptr<const TextModel> open(int64_t context = 0) {
    return TextModel::load(kDirectory, load_model_config(kDirectory).value(), context).value();
  }
  static TextRequest chat(const std::string& last, const std::string& role = "assistant") {
    TextRequest request;
    request.messages = {{{"role", "user"}, {"content", "2+2? The answer is"}}, {{"role", role}, {"content", last}}};
    return request;
  }
  // The text that the prompt's tokens stand for, special tokens included.
  std::string shown(const TextRequest& request, const TextSide* own = nullptr) {
    const auto tokens = model_->prompt_tokens(request, own);
    EXPECT_TRUE(tokens.ok()) << tokens.status().message();
    return tokens.ok() ? model_->tokenizer()->decode(*tokens, false) : "";
  }
  // The base's text side with one template instead of its own.
  std::shared_ptr<const TextSide> with_template(const std::string& source) {
    auto side = std::make_shared<TextSide>();
    side->tokenizer = model_->tokenizer();
    side->vocab_size = model_->shared_base()->vocab_size;
    side->templates = ChatTemplates::of(ChatTemplate::parse(source, "test").value());
    return side;
  }
  std::string refusal(TextRequest request) { return prepare(*model_, std::move(request)).status().message(); }

  const std::shared_ptr<const TextModel> model_ = open();
};

// A text that is far too long is not read to its end.
TEST_F(TextModelTest, TextsThatAreFarTooLongAreRefusedByTheirBeginning) {
  const auto model = open(32);
  TextRequest request;
  for (const char* word : {"word ", "ärger ", "日本語", "😀", " ", "\n", "aaaa"}) {
    request.prompt.clear();
    for (int i = 0; i < 200'000; ++i) request.prompt += word;
    const std::vector<int32_t> tokens = model->prompt_tokens(request, nullptr, nullptr, 32).value();
    EXPECT_GT(tokens.size(), 64u) << word;
    EXPECT_LT(tokens.size(), 40'000u) << word;
    EXPECT_THAT(prepare(*model, request).status().message(), HasSubstr("more than 64 tokens")) << word;
  }
  // As many tokens as ever: only their number is bounded.
  request.prompt = "word word word word";
  EXPECT_EQ(model->prompt_tokens(request, nullptr, nullptr, 1).value(), model->prompt_tokens(request).value());
  // The last ones are wanted: they are at its end.
  for (int i = 0; i < 10'000; ++i) request.prompt += " word";
  request.prompt += " end";
  request.truncate_prompt_tokens = 8;
  const auto prepared = prepare(*model, request);
  ASSERT_TRUE(prepared.ok()) << prepared.status().message();
  EXPECT_EQ((*prepared)->asked.prompt.size(), 8u);
  EXPECT_TRUE((*prepared)->text.prompt.empty()) << "nothing of it waits for the engine";
  const std::string end = model->tokenizer()->decode((*prepared)->asked.prompt, false);
  EXPECT_TRUE(end.ends_with(" end")) << end;
}

TEST_F(TextModelTest, ASequenceKeepsNothingOfWhatItsPromptWasMadeOf) {
  TextRequest request = chat("Four");
  request.tools = {boost::json::object{{"type", "function"}}};
  request.template_variables = {{"documents", boost::json::array{}}};
  const auto sequence = prepare(*model_, request).value();
  EXPECT_TRUE(sequence->text.messages.empty() && sequence->text.tools.empty());
  EXPECT_TRUE(sequence->text.template_variables.empty());
  EXPECT_TRUE(prepare(*model_, {.token_ids = {1, 2}}).value()->text.token_ids.empty());
}

// Clients give the same budget to every model: one without thoughts keeps within it.
TEST_F(TextModelTest, ABudgetNeedsNoThoughts) {
  TextRequest request{.token_ids = {1, 2}, .thinking_budget = 5};
  EXPECT_TRUE(prepare(*model_, request).ok());
  request.reasoning = ReasoningFormat::kQwen3;
  EXPECT_TRUE(prepare(*model_, request).ok());
}

TEST_F(TextModelTest, OutputEndsWhereTheContextDoes) {
  const auto model = open(32);
  TextRequest request;
  request.token_ids = std::vector<int32_t>(30, 40);
  request.max_tokens = 100;
  EXPECT_EQ(prepare(*model, request).value()->asked.max_tokens, 2);
  request.token_ids.resize(31, 40);
  EXPECT_EQ(prepare(*model, request).value()->asked.max_tokens, 1);
  request.token_ids.resize(32, 40);
  EXPECT_THAT(prepare(*model, request).status().message(), HasSubstr("no room for output"));
  request.max_tokens = 0;  // only scored
  EXPECT_TRUE(prepare(*model, request).ok());
  request.max_tokens = 5;
  request.embed = true;  // makes no tokens either
  EXPECT_EQ(prepare(*model, request).value()->asked.max_tokens, 0);
  EXPECT_EQ(prepare(*model, request).value()->asked.pooling, Pooling::kMean);
  request.token_ids.resize(33, 40);
  EXPECT_THAT(prepare(*model, request).status().message(), HasSubstr("too long"));
  EXPECT_FALSE(TextModel::load(kDirectory, load_model_config(kDirectory).value(), 513).ok()) << "longer than the model";
}

TEST_F(TextModelTest, TruncationKeepsTheEnd) {
  TextRequest request{.token_ids = {5, 6, 7, 8, 9}, .truncate_prompt_tokens = 3};
  EXPECT_EQ(prepare(*model_, request).value()->asked.prompt, (std::vector<int32_t>{7, 8, 9}));
  request.truncate_prompt_tokens = 5;
  EXPECT_EQ(prepare(*model_, request).value()->asked.prompt.size(), 5u);
  TextRequest text{.prompt = "Once upon a time there was a parrot", .truncate_prompt_tokens = 2};
  const std::vector<int32_t> all = model_->tokenizer()->encode(text.prompt, true).value();
  EXPECT_EQ(prepare(*model_, text).value()->asked.prompt, (std::vector<int32_t>{all[all.size() - 2], all.back()}));
}

TEST_F(TextModelTest, StopTokensAreTheRequestsAndTheModels) {
  TextRequest request{.prompt = "x", .stop_token_ids = {77}};
  EXPECT_EQ(prepare(*model_, request).value()->asked.stop_token_ids, (std::vector<int32_t>{77, 2, 0}));
  request.ignore_eos = true;
  EXPECT_EQ(prepare(*model_, request).value()->asked.stop_token_ids, std::vector<int32_t>{77});
}

TEST_F(TextModelTest, RefusesByNameAndRange) {
  EXPECT_THAT(refusal({.prompt = "x", .max_tokens = -1}), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal({.prompt = "x", .allowed_token_ids = {1536}}), HasSubstr("allowed_token_ids"));
  EXPECT_THAT(refusal({.prompt = "x", .allowed_token_ids = {-1}}), HasSubstr("allowed_token_ids"));
  EXPECT_THAT(refusal({.token_ids = {1536}}), HasSubstr("outside the vocabulary"));
  EXPECT_THAT(refusal({.prompt = "x", .stop = std::vector<std::string>(17, "a")}), HasSubstr("17 strings"));
  EXPECT_THAT(refusal({.prompt = "x", .stop = {std::string(257, 'a')}}), HasSubstr("1 to 256 bytes"));
  EXPECT_THAT(refusal({.prompt = "x", .token_ids = {1}}), HasSubstr("exactly one of"));
  EXPECT_THAT(refusal({}), HasSubstr("exactly one of"));
  TextRequest request{.prompt = "x"};
  request.sampling.logit_bias = {{1536, 1}};
  EXPECT_THAT(refusal(request), HasSubstr("logit_bias"));
  request = {.prompt = "x"};
  request.sampling.num_logprobs = 21;
  EXPECT_THAT(refusal(request), HasSubstr("logprobs"));
}

constexpr const char* kTrimming = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}</s>{% endfor %}";

// The values are those of apply_chat_template(continue_final_message=True) of transformers 5.23.
TEST_F(TextModelTest, ContinuedMessageIsCutAsTransformersCutsIt) {
  const std::string head = "<|im_start|>user\n2+2? The answer is<|im_end|>\n<|im_start|>assistant\n";
  const std::string trimmed_head = "[user] 2+2? The answer is</s>[assistant] ";
  const auto trimming = with_template(kTrimming);
  struct Case {
    std::string content, kept, trimmed;
  };
  for (const auto& [content, kept, trimmed] : {Case{"The answer is", "The answer is", "The answer is"},
                                               Case{"The answer is  \n", "The answer is  \n", "The answer is"},
                                               Case{"  lead and trail \t", "  lead and trail \t", "lead and trail"}}) {
    TextRequest request = chat(content);
    request.continue_final_message = true;
    EXPECT_EQ(shown(request), head + kept);
    EXPECT_EQ(shown(request, trimming.get()), trimmed_head + trimmed);
  }
}

TEST_F(TextModelTest, ContinuedMessageThatTheTemplateHidesIsRefused) {
  TextRequest request = chat("The answer is");
  request.continue_final_message = true;
  const auto hiding = with_template("{{ messages[0]['content'] }}");
  EXPECT_THAT(model_->prompt_tokens(request, hiding.get()).status().message(),
              HasSubstr("does not show the last message"));
  const auto shortening = with_template("{{ messages[1]['content'][4:] }}");
  EXPECT_THAT(model_->prompt_tokens(request, shortening.get()).status().message(),
              HasSubstr("does not show the last message"));
  request.messages.back().as_object()["content"] = nullptr;
  EXPECT_THAT(model_->prompt_tokens(request).status().message(), HasSubstr("needs a last message with text"));
  // Parts: the last text of them is what goes on.
  request.messages.back().as_object()["content"] =
      boost::json::array{{{"type", "text"}, {"text", "one "}}, {{"type", "text"}, {"text", "two "}}};
  const auto parts = with_template("{% for p in messages[1]['content'] %}<{{ p['text'] }}>{% endfor %}");
  EXPECT_EQ(shown(request, parts.get()), "<one ><two ");
}

TEST_F(TextModelTest, OwnTemplateReplacesTheModels) {
  const auto own = with_template("{{ messages[0]['content'] }}|{{ add_generation_prompt }}|{{ extra }}");
  TextRequest request = chat("hm");
  request.template_variables = {{"extra", "more"}, {"messages", "not these"}};
  EXPECT_EQ(shown(request, own.get()), "2+2? The answer is|True|more");
  EXPECT_THAT(shown(request), ::testing::EndsWith("<|im_start|>assistant\n"));
  request.add_generation_prompt = false;
  EXPECT_EQ(shown(request, own.get()), "2+2? The answer is|False|more");
}

TEST(TextModelDummy, TakesTokensOnly) {
  const auto model = TextModel::load("", load_model_config(kDirectory).value(), 0).value();
  EXPECT_TRUE(prepare(*model, {.token_ids = {1, 2}}).ok());
  EXPECT_EQ(prepare(*model, {.prompt = "x"}).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(prepare(*model, {.token_ids = {1}, .stop = {"a"}}).status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace lk
