// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_engine.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <cmath>
#include <filesystem>
#include <set>

#include "lora/adapter_maker.h"

namespace lk {
namespace {

class TextEngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = TextEngine::open({.model = "examples/demo/model", .memory_bytes = 64 << 20}).value().release();
    for (const auto& entry : std::filesystem::directory_iterator("examples/demo/adapters"))
      ASSERT_TRUE(engine_->add_adapter(entry.path().filename(), entry.path()).ok());
  }
  static void TearDownTestSuite() { delete engine_; }

  struct Outcome {
    Completion completion;
    std::string streamed;
  };
  static TextRequest greedy(const std::string& prompt, int64_t max_tokens) {
    TextRequest request{.prompt = prompt, .max_tokens = max_tokens, .ignore_eos = true};
    request.sampling.temperature = 0;
    return request;
  }
  static Outcome run(TextRequest request) {
    Outcome outcome;
    const auto id = engine_->submit(std::move(request));
    EXPECT_TRUE(id.ok()) << id.status().message();
    while (engine_->has_work())
      for (TextUpdate& update : engine_->step()) {
        outcome.streamed += update.delta.text;
        if (update.ended) outcome.completion = std::move(update.ended->completion);
      }
    return outcome;
  }
  static TextEngine* engine_;
};
TextEngine* TextEngineTest::engine_ = nullptr;

TEST_F(TextEngineTest, StreamedPiecesAddUpToTheText) {
  const Outcome outcome = run(greedy("Once upon a time", 60));
  EXPECT_EQ(outcome.completion.token_ids.size(), 60u);
  EXPECT_EQ(outcome.completion.finish, FinishReason::kLength);
  EXPECT_EQ(outcome.streamed, outcome.completion.text);
}

TEST_F(TextEngineTest, EveryStopStringCutsWhereItFirstAppears) {
  const std::string full = run(greedy("Once upon a time", 60)).completion.text;
  for (size_t begin = 5; begin + 9 < full.size(); begin += 31) {
    for (size_t length : {1, 4, 9}) {
      const std::string stop = full.substr(begin, length);
      TextRequest request = greedy("Once upon a time", 60);
      request.stop = {"not in the text", stop};
      const Outcome outcome = run(request);
      EXPECT_EQ(outcome.completion.text, full.substr(0, full.find(stop)));
      EXPECT_EQ(outcome.streamed, outcome.completion.text) << "a part of the stop string was shown";
      EXPECT_EQ(outcome.completion.finish, FinishReason::kStop);
    }
  }
}

TEST_F(TextEngineTest, StopTokenEndsWithoutItsText) {
  const Outcome full = run(greedy("Once upon a time", 30));
  TextRequest request = greedy("Once upon a time", 30);
  request.stop_token_ids = {full.completion.token_ids[12]};
  const Outcome outcome = run(request);
  EXPECT_EQ(outcome.completion.finish, FinishReason::kStop);
  EXPECT_LE(outcome.completion.token_ids.size(), 13u);
  EXPECT_EQ(outcome.completion.token_ids.back(), request.stop_token_ids[0]);
  EXPECT_TRUE(full.completion.text.starts_with(outcome.completion.text));
}

TEST_F(TextEngineTest, SameSeedSameTokensOtherSeedOtherTokens) {
  TextRequest request = greedy("Once upon a time", 40);
  request.sampling.temperature = 1.5;
  request.sampling.seed = 11;
  const auto first = run(request).completion.token_ids;
  EXPECT_EQ(run(request).completion.token_ids, first);
  request.sampling.seed = 12;
  EXPECT_NE(run(request).completion.token_ids, first);
}

TEST_F(TextEngineTest, LogprobsOfTheOutputMatchTheSameTokensAsPrompt) {
  TextRequest request = greedy("Once upon a time", 20);
  request.sampling.num_logprobs = 3;
  const Completion made = run(request).completion;
  ASSERT_EQ(made.logprobs.size(), 20u);
  TextRequest scored{.token_ids = engine_->tokenizer()->encode("Once upon a time", true).value(), .max_tokens = 0};
  const size_t prompt_length = scored.token_ids.size();
  scored.token_ids.insert(scored.token_ids.end(), made.token_ids.begin(), made.token_ids.end());
  scored.sampling.num_prompt_logprobs = 3;
  const Completion again = run(scored).completion;
  ASSERT_EQ(again.prompt_logprobs.size(), prompt_length + 20 - 1);
  for (size_t i = 0; i < 20; ++i) {
    const TokenLogprob& a = made.logprobs[i];
    const TokenLogprob& b = again.prompt_logprobs[prompt_length - 1 + i];
    EXPECT_EQ(a.logprob, b.logprob) << "bit for bit: decoding and scoring are the same arithmetic";
    EXPECT_EQ(a.top, b.top);
    EXPECT_EQ(a.rank, 1);
    EXPECT_EQ(a.top[0].first, a.token);
  }
}

TEST_F(TextEngineTest, PenaltiesAndBiasChangeWhatTheyName) {
  const auto tokens = run(greedy("Once upon a time", 20)).completion.token_ids;
  TextRequest request = greedy("Once upon a time", 20);
  request.sampling.logit_bias = {{tokens[0], -100.0f}};
  EXPECT_NE(run(request).completion.token_ids[0], tokens[0]);
  request = greedy("Once upon a time", 60);
  request.sampling.frequency_penalty = 2;
  request.sampling.presence_penalty = 2;
  const auto penalised = run(request).completion.token_ids;
  EXPECT_GT(std::set<int32_t>(penalised.begin(), penalised.end()).size(),
            std::set<int32_t>(tokens.begin(), tokens.end()).size());
}

TEST_F(TextEngineTest, CancellationFreesEverythingAndReportsOnce) {
  const int64_t free_before = engine_->pool().num_available();
  TextRequest request = greedy("Once upon a time", 200);
  request.adapter = engine_->adapters().begin()->first;
  const RequestId id = engine_->submit(request).value();
  for (int i = 0; i < 5 && engine_->has_work(); ++i)
    for (const TextUpdate& update : engine_->step()) EXPECT_FALSE(update.ended);
  const std::optional<TextUpdate> last = engine_->cancel(id);
  ASSERT_TRUE(last && last->ended);
  EXPECT_EQ(last->ended->completion.finish, FinishReason::kCancelled);
  EXPECT_FALSE(engine_->cancel(id)) << "reported once";
  EXPECT_FALSE(engine_->has_work());
  EXPECT_EQ(engine_->pool().num_available(), free_before);
  engine_->pool().check_integrity();
}

// An adapter of a grown vocabulary: its new token is in prompts, answers, masks and log-probabilities; nobody else's.
TEST_F(TextEngineTest, NewTokensAreTheAdaptersOwn) {
  const ModelConfig& config = engine_->config();
  const int32_t zap = static_cast<int32_t>(config.vocab_size);
  const int64_t rows = config.vocab_size + 1, width = config.hidden_dim;
  testing::TempDir dir;
  const TensorView* table = engine_->engine().weights().checkpoint->find("model.embed_tokens.weight");
  std::vector<float> values = testing::to_floats(*table);
  values.insert(values.end(), values.end() - width, values.end());
  const std::vector<float> zero_b(static_cast<size_t>(config.q_dim()), 0.0f);
  testing::TensorBag bag;
  bag.set("base_model.model.model.embed_tokens.weight", {rows, width}, values);
  bag.set("base_model.model.lm_head.weight", {rows, width}, values);
  bag.add("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", {1, width});
  bag.set("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", {config.q_dim(), 1}, zero_b);
  bag.write(dir.file("adapter_model.safetensors"));
  dir.write("adapter_config.json",
            R"({"peft_type":"LORA","r":1,"target_modules":["model.layers.0.self_attn.q_proj"]})");
  boost::json::object tokenizer =
      boost::json::parse(read_file("examples/demo/model/tokenizer.json").value()).as_object();
  tokenizer["added_tokens"].as_array().push_back(boost::json::object{{"id", zap},
                                                                     {"content", "<|zap|>"},
                                                                     {"single_word", false},
                                                                     {"lstrip", false},
                                                                     {"rstrip", false},
                                                                     {"normalized", false},
                                                                     {"special", false}});
  dir.write("tokenizer.json", boost::json::serialize(tokenizer));
  const Outcome before = run(greedy("Once upon a time", 20));
  const Status added = engine_->add_adapter("grown", dir.path());
  ASSERT_TRUE(added.ok()) << added.message();

  // Without its token it says what the base says.
  TextRequest plain = greedy("Once upon a time", 20);
  plain.adapter = "grown";
  EXPECT_EQ(run(plain).completion.token_ids, before.completion.token_ids);

  TextRequest request = greedy("a<|zap|>b", 3);
  request.adapter = "grown";
  request.sampling.logit_bias = {{zap, 100.0f}};
  request.sampling.num_logprobs = 20;
  request.sampling.num_prompt_logprobs = 0;
  request.sampling.repetition_penalty = 1.1;
  Outcome outcome = run(request);
  EXPECT_EQ(outcome.completion.text, "<|zap|><|zap|><|zap|>");
  EXPECT_EQ(outcome.completion.token_ids, std::vector<int32_t>(3, zap));
  for (const TokenLogprob& entry : outcome.completion.logprobs) EXPECT_TRUE(std::isfinite(entry.logprob));
  EXPECT_EQ(std::ranges::count(outcome.completion.prompt_logprobs, zap, &TokenLogprob::token), 1);

  request = greedy("Once", 2);
  request.adapter = "grown";
  request.allowed_token_ids = {zap};
  EXPECT_EQ(run(request).completion.text, "<|zap|><|zap|>");

  // In one batch with the base, whose rows are shorter: both get what they get alone.
  request = greedy("Once upon a time", 20);
  request.allowed_token_ids = before.completion.token_ids;
  ASSERT_TRUE(engine_->submit(request).ok());
  request.adapter = "grown";
  request.allowed_token_ids.push_back(zap);
  ASSERT_TRUE(engine_->submit(request).ok());
  int ended = 0;
  while (engine_->has_work())
    for (TextUpdate& update : engine_->step())
      if (update.ended) {
        ++ended;
        EXPECT_EQ(update.ended->completion.token_ids, before.completion.token_ids);
      }
  EXPECT_EQ(ended, 2);

  const auto message = [&](TextRequest refused) { return engine_->submit(std::move(refused)).status().message(); };
  request = greedy("x", 2);
  request.sampling.logit_bias = {{zap, 1.0f}};
  EXPECT_NE(message(request).find("logit_bias names token"), std::string::npos);
  request = greedy("", 2);
  request.token_ids = {zap};
  EXPECT_NE(message(request).find("outside the vocabulary"), std::string::npos);
  engine_->remove_adapter("grown");
}

TEST_F(TextEngineTest, RefusesBadRequestsByName) {
  const auto message = [&](TextRequest request) { return engine_->submit(std::move(request)).status().message(); };
  TextRequest request = greedy("x", 4);
  request.adapter = "nobody";
  EXPECT_NE(message(request).find("unknown adapter \"nobody\""), std::string::npos);
  EXPECT_NE(message(greedy("", 4)).find("exactly one of"), std::string::npos);
  EXPECT_NE(message(greedy("a\xff", 4)).find("UTF-8"), std::string::npos);
  request = greedy("x", 4);
  request.sampling.top_p = std::nan("");
  EXPECT_NE(message(request).find("top_p"), std::string::npos);
  request = greedy("", 4);
  request.token_ids = {-1};
  EXPECT_NE(message(request).find("outside the vocabulary"), std::string::npos);
  request = greedy("x", 4);
  request.stop = {""};
  EXPECT_NE(message(request).find("stop"), std::string::npos);
  EXPECT_FALSE(engine_->has_work());
}

}  // namespace
}  // namespace lk
