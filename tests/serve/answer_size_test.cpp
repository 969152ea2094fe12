// SPDX-License-Identifier: Apache-2.0
// The estimate against what the formatter writes.
#include "lk/serve/openai/answer_size.h"

#include <gtest/gtest.h>

#include "serve/openai_testing.h"

namespace lk {
namespace {

constexpr int64_t kPromptTokens = 200, kOutputTokens = 300;

struct Case {
  Endpoint endpoint = Endpoint::kCompletion;
  int n = 1, logprobs = -1, prompt_logprobs = -1;
  bool echo = false, token_ids = false;
};

TokenLogprob token_of(int64_t i, int top) {
  TokenLogprob token{.token = static_cast<int32_t>('a' + i % 26), .logprob = -1.234567f - static_cast<float>(i) / 7};
  for (int k = 0; k < top; ++k)
    token.top.emplace_back(static_cast<int32_t>('A' + (i + k) % 26), -2.345678f - static_cast<float>(k) / 3);
  return token;
}

int64_t written(const Case& c, GenerateRequest& request) {
  const auto tokenizer = testing::byte_tokenizer();
  const std::string prompt(kPromptTokens, 'p');
  TextRequest text{.prompt = prompt, .max_tokens = kOutputTokens};
  text.sampling.num_logprobs = c.logprobs;
  text.sampling.num_prompt_logprobs = std::max(c.prompt_logprobs, c.echo ? c.logprobs : -1);
  request = {.endpoint = c.endpoint,
             .prompts = {text},
             .n = c.n,
             .echo = c.echo,
             .logprobs = c.logprobs >= 0,
             .prompt_logprobs = c.prompt_logprobs >= 0,
             .return_token_ids = c.token_ids};
  AnswerFormatter formatter(request, "cmpl-0123456789abcdef", 1'700'000'000, "model", tokenizer.get(),
                            ToolFormat::kNone);
  std::vector<Completion> completions;
  for (int k = 0; k < c.n; ++k) {
    Completion& made = completions.emplace_back();
    made.finish = FinishReason::kLength;
    made.prompt_token_ids = testing::byte_tokens(prompt);
    made.prompt_tokens = kPromptTokens;
    for (int64_t i = 0; i < kOutputTokens; ++i) {
      made.logprobs.push_back(token_of(i, std::max(0, c.logprobs)));
      made.token_ids.push_back(made.logprobs.back().token);
      made.text += static_cast<char>(made.token_ids.back());
    }
    if (c.logprobs < 0) made.logprobs.clear();
    if (text.sampling.num_prompt_logprobs >= 0)
      for (int64_t i = 1; i < kPromptTokens; ++i)
        made.prompt_logprobs.push_back(token_of(i, text.sampling.num_prompt_logprobs));
  }
  const std::string whole = formatter.response(completions);
  return std::ssize(whole);
}

TEST(AnswerSize, EstimatesAreNeitherFarBelowNorFarAboveWhatIsWritten) {
  for (const Endpoint endpoint : {Endpoint::kChat, Endpoint::kCompletion})
    for (const int n : {1, 5})
      for (const int logprobs : {-1, 0, 5, 20})
        for (const int prompt_logprobs : {-1, 0, 20})
          for (const bool echo : {false, true})
            for (const bool token_ids : {false, true}) {
              GenerateRequest request;
              const Case c{endpoint, n, logprobs, prompt_logprobs, echo && endpoint == Endpoint::kCompletion,
                           token_ids};
              const int64_t real = written(c, request);
              const int64_t guess =
                  answer_size(request, request.prompts[0], kPromptTokens, kPromptTokens).bytes(kOutputTokens);
              SCOPED_TRACE(fmt::format("chat {} n {} logprobs {} prompt_logprobs {} echo {} ids {}",
                                       endpoint == Endpoint::kChat, n, logprobs, prompt_logprobs, c.echo, token_ids));
              EXPECT_GE(guess + 1024, real) << "tokens of one byte are shorter than usual";
              EXPECT_LE(guess, 10 * real);
            }
}

TEST(AnswerSize, AStreamHoldsWhatItShowsOfThePrompt) {
  GenerateRequest request{.endpoint = Endpoint::kCompletion, .n = 4, .stream = true, .echo = true, .logprobs = true};
  TextRequest text;
  text.sampling.num_logprobs = 20;
  const AnswerSize size = answer_size(request, text, 1000, 4000);
  EXPECT_EQ(size.per_token, 0);
  EXPECT_GT(size.fixed, 4 * 1000 * 20 * 20);
  EXPECT_EQ(size.bytes(1'000'000), size.fixed);
}

TEST(AnswerSize, LogProbabilitiesAreHeldUntilTheEnd) {
  GenerateRequest request{.endpoint = Endpoint::kChat, .n = 4, .stream = true, .logprobs = true};
  TextRequest text;
  text.sampling.num_logprobs = 20;
  const AnswerSize size = answer_size(request, text, 1000, 4000);
  EXPECT_EQ(size.held_fixed, 0);
  EXPECT_GE(size.held_per_token,
            static_cast<int64_t>(4 * (sizeof(TokenLogprob) + 20 * sizeof(std::pair<int32_t, float>))));
  EXPECT_EQ(size.held_bytes(100), 100 * size.held_per_token);
  EXPECT_EQ(size.tokens_that_fit(1 << 20, 10 * size.held_per_token + 1), 10);
  text.sampling.num_prompt_logprobs = 0;
  EXPECT_EQ(answer_size(request, text, 1000, 4000).held_fixed, static_cast<int64_t>(4 * 1000 * sizeof(TokenLogprob)));
  request.echo = true;
  EXPECT_EQ(answer_size(request, text, 1000, 4000).held_fixed,
            static_cast<int64_t>(4000 + 4 * 1000 * sizeof(TokenLogprob)));
  request.logprobs = false;
  EXPECT_EQ(answer_size(request, text, 1000, 4000).held_per_token, 0) << "plain text is bounded by its tokens";
}

TEST(AnswerSize, WhatAResponseRepeatsOfItsRequestIsHeldUntilTheEnd) {
  GenerateRequest request{.endpoint = Endpoint::kResponses, .n = 1, .repeated = std::string(100'000, 'x')};
  const TextRequest text;
  EXPECT_EQ(answer_size(request, text, 10, 40).held_fixed, 100'000);
  request.echo = true;
  EXPECT_EQ(answer_size(request, text, 10, 40).held_fixed, 100'040);
}

TEST(AnswerSize, HugeRequestsDoNotOverflow) {
  GenerateRequest request{.n = 1 << 30, .logprobs = true, .prompt_logprobs = true};
  TextRequest text;
  text.sampling.num_logprobs = text.sampling.num_prompt_logprobs = 1 << 30;
  const int64_t most = int64_t{1} << 62;
  const AnswerSize size = answer_size(request, text, most, most / 2);
  EXPECT_GT(size.bytes(most), int64_t{1} << 40);
  EXPECT_GT(size.held_bytes(most), int64_t{1} << 40);
  EXPECT_EQ(size.tokens_that_fit(1000, most), 0);
  EXPECT_EQ(size.tokens_that_fit(most, 1000), 0);
}

TEST(AnswerSize, WhatIsLongerThanAllowedIsNotWritten) {
  GenerateRequest request;
  const Case c{Endpoint::kChat, 2, 20, 20, false, true};
  const int64_t real = written(c, request);
  const auto tokenizer = testing::byte_tokenizer();
  AnswerFormatter formatter(request, "id", 1, "model", tokenizer.get(), ToolFormat::kNone);
  std::vector<Completion> completions(2);
  for (Completion& made : completions)
    for (int64_t i = 0; i < kOutputTokens; ++i) {
      made.logprobs.push_back(token_of(i, 20));
      made.token_ids.push_back(made.logprobs.back().token);
    }
  EXPECT_EQ(formatter.response(completions, 10'000), "");
  EXPECT_GT(real, 10'000);
}

}  // namespace
}  // namespace lk
