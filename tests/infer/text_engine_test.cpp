// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

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
