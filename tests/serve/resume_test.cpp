// SPDX-License-Identifier: Apache-2.0
// A request that is continued on another engine gives exactly what it would have given: for each kind of sampling,
// wherever it is cut.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "lk/infer/text_engine.h"
#include "serve/service_testing.h"

namespace lk {
namespace {

constexpr int64_t kLength = 24;

class ResumeTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    first_ = open().release();
    second_ = open({.max_step_tokens = 7}).release();  // other chunks of the prompt
    vocabulary_ = new std::shared_ptr<const TokenVocabulary>(TokenVocabulary::create(
        *first_->tokenizer(), first_->text().config().vocab_size, first_->text().base().end_tokens));
  }
  static void TearDownTestSuite() {
    delete first_;
    delete second_;
    delete vocabulary_;
  }
  static std::unique_ptr<TextEngine> open(const SchedulerOptions& scheduler = {}) {
    std::unique_ptr<TextEngine> engine = testing::open_demo(scheduler);
    for (const char* name : {"sql", "tag"}) EXPECT_TRUE(engine->add_adapter(name, testing::kDemoAdapters + name).ok());
    return engine;
  }

  struct Run {
    Completion completion;
    std::vector<size_t> shown{0};  // bytes of text shown after each token; [0] before the first
    std::string streamed;
  };
  static Run run(TextEngine& engine, const TextRequest& request) {
    Run run;
    const Result<RequestId> id = engine.submit(request);
    EXPECT_TRUE(id.ok()) << id.status().message();
    while (engine.has_work())
      for (TextUpdate& update : engine.step()) {
        run.streamed += update.delta.text;
        if (!update.delta.tokens.empty()) run.shown.push_back(run.streamed.size());
        if (update.ended) run.completion = std::move(update.ended->completion);
      }
    EXPECT_EQ(run.streamed, run.completion.text);
    engine.pool().check_integrity();
    return run;
  }
  static Status refusal(TextRequest request) { return second_->submit(std::move(request)).status(); }

  static TextRequest base(const std::string& adapter = "") {
    TextRequest request{.adapter = adapter, .prompt = "Once upon a time", .max_tokens = kLength, .ignore_eos = true};
    request.sampling.temperature = 0;
    return request;
  }
  static TextRequest sampled(uint64_t seed, const std::string& adapter = "") {
    TextRequest request = base(adapter);
    request.sampling.temperature = 1.4;
    request.sampling.seed = seed;
    return request;
  }

  // Cut before the last token at the latest: what has all its tokens has ended.
  static void expect_same_wherever_cut(const TextRequest& request) {
    const Run whole = run(*first_, request);
    const Completion& all = whole.completion;
    ASSERT_GE(all.token_ids.size(), 2u);
    for (size_t k = 1; k < all.token_ids.size(); ++k) {
      SCOPED_TRACE(fmt::format("cut after {} of {} tokens", k, all.token_ids.size()));
      TextRequest rest = request;
      rest.output_so_far.assign(all.token_ids.begin(), all.token_ids.begin() + static_cast<ptrdiff_t>(k));
      const Completion resumed = run(*second_, rest).completion;
      EXPECT_EQ(resumed.token_ids,
                std::vector<int32_t>(all.token_ids.begin() + static_cast<ptrdiff_t>(k), all.token_ids.end()));
      EXPECT_EQ(all.text.substr(0, whole.shown[k]) + resumed.text, all.text);
      EXPECT_EQ(resumed.text, all.text.substr(std::min(all.text.size(), whole.shown[k])));
      EXPECT_EQ(resumed.finish, all.finish);
      EXPECT_EQ(resumed.stop_string, all.stop_string);
      EXPECT_EQ(resumed.stop_token, all.stop_token);
      EXPECT_EQ(resumed.prompt_tokens, all.prompt_tokens);
      EXPECT_TRUE(resumed.prompt_logprobs.empty());
      if (request.sampling.num_logprobs < 0) continue;
      ASSERT_EQ(resumed.logprobs.size(), all.logprobs.size() - k);
      for (size_t i = k; i < all.logprobs.size(); ++i) {
        EXPECT_EQ(resumed.logprobs[i - k].logprob, all.logprobs[i].logprob) << "bit for bit";
        EXPECT_EQ(resumed.logprobs[i - k].rank, all.logprobs[i].rank);
        EXPECT_EQ(resumed.logprobs[i - k].top, all.logprobs[i].top);
      }
    }
  }

  static TextEngine *first_, *second_;
  static std::shared_ptr<const TokenVocabulary>* vocabulary_;
};
TextEngine *ResumeTest::first_ = nullptr, *ResumeTest::second_ = nullptr;
std::shared_ptr<const TokenVocabulary>* ResumeTest::vocabulary_ = nullptr;

TEST_F(ResumeTest, GreedyWithLogprobs) {
  TextRequest request = base();
  request.sampling.num_logprobs = 3;
  expect_same_wherever_cut(request);
}

TEST_F(ResumeTest, SampledDrawsTheSameNumbers) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    TextRequest request = sampled(seed);
    request.sampling.num_logprobs = 0;
    if (seed == 2) request.sampling.top_p = 0.9, request.sampling.top_k = 40;
    if (seed == 3) request.sampling.min_p = 0.02;
    expect_same_wherever_cut(request);
  }
}

TEST_F(ResumeTest, PenaltiesCountTheOutputSoFarAsOutput) {
  TextRequest request = sampled(4);
  request.sampling.presence_penalty = 1.5;
  request.sampling.frequency_penalty = 0.7;
  request.sampling.repetition_penalty = 1.2;
  request.sampling.num_logprobs = 2;
  expect_same_wherever_cut(request);
  request.sampling.temperature = 0;
  expect_same_wherever_cut(request);
}

TEST_F(ResumeTest, LogitBias) {
  TextRequest request = sampled(5);
  for (const int32_t token : run(*first_, base()).completion.token_ids)
    request.sampling.logit_bias.emplace_back(token, -5.0f);
  expect_same_wherever_cut(request);
}

TEST_F(ResumeTest, GrammarStandsWhereItStood) {
  const auto compiled = [&](GrammarSpec spec) { return compile_grammar(spec, *vocabulary_).value(); };
  TextRequest request = sampled(6);
  request.grammar = compiled(
      {.kind = GrammarSpec::Kind::kJsonSchema, .text = R"({"type": "object", "properties": {"a": {"type": "integer"},
                                          "b": {"type": "array", "items": {"type": "boolean"}}},
                                          "required": ["a", "b"], "additionalProperties": false})"});
  request.max_tokens = 60;
  expect_same_wherever_cut(request);
  request.grammar = compiled({.kind = GrammarSpec::Kind::kRegex, .text = "([a-f]{3}-){4}[0-9]{2}"});
  expect_same_wherever_cut(request);
}

TEST_F(ResumeTest, AllowedTokensAndMinTokens) {
  TextRequest request = sampled(7);
  request.allowed_token_ids = {40, 41, 42, 43, 300, 301, 302};
  expect_same_wherever_cut(request);
  request = sampled(8);
  request.ignore_eos = false;
  request.min_tokens = 12;
  request.stop_token_ids = run(*first_, base()).completion.token_ids;
  expect_same_wherever_cut(request);
}

// A stop string may begin before the cut and end after it; a character, too.
TEST_F(ResumeTest, StopStringsAndCharactersSpanTheSeam) {
  for (const std::string adapter : {"", "sql"}) {
    const std::string text = run(*first_, sampled(9, adapter)).completion.text;
    for (size_t begin = 1; begin + 12 < text.size(); begin += text.size() / 6) {
      TextRequest request = sampled(9, adapter);
      request.stop = {text.substr(begin, 12), "never said"};
      request.include_stop_string = begin % 2 == 0;
      const Run whole = run(*first_, request);
      if (whole.completion.token_ids.size() < 2) continue;
      EXPECT_EQ(whole.completion.finish, FinishReason::kStop);
      expect_same_wherever_cut(request);
    }
  }
  // At this temperature the bytes of many characters come one by one, whole or not.
  TextRequest request = sampled(10);
  request.sampling.temperature = 50;
  expect_same_wherever_cut(request);
}

TEST_F(ResumeTest, Adapters) {
  for (const char* name : {"sql", "tag"}) {
    TextRequest request = base(name);
    request.sampling.num_logprobs = 1;
    expect_same_wherever_cut(request);
    expect_same_wherever_cut(sampled(11, name));
  }
}

// Another cut of the resumed one, several at once with little memory (preemptions), and an engine that has seen
// nothing.
TEST_F(ResumeTest, ResumedAgainAmongOthersAndPreempted) {
  std::vector<TextRequest> requests;
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t i = 0; i < 12; ++i) {
    TextRequest request = sampled(20 + i, i % 3 == 0 ? "sql" : "");
    request.max_tokens = 60;
    request.sampling.frequency_penalty = 0.5;
    request.prompt += std::string(i, '!');
    const std::vector<int32_t> all = run(*first_, request).completion.token_ids;
    const auto cut = static_cast<ptrdiff_t>(1 + 5 * i % 50);
    request.output_so_far.assign(all.begin(), all.begin() + cut);
    requests.push_back(request);
    expected.emplace_back(all.begin() + cut, all.end());
  }
  std::unique_ptr<TextEngine> small = testing::open_demo({}, 900 << 10);
  ASSERT_TRUE(small->add_adapter("sql", testing::kDemoAdapters + "sql").ok());
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i) index[small->submit(requests[i]).value()] = i;
  size_t ended = 0;
  while (small->has_work())
    for (const TextUpdate& update : small->step())
      if (update.ended) {
        const size_t i = index.at(update.ended->asked.id);
        EXPECT_EQ(update.ended->completion.token_ids, expected[i]) << i;
        ++ended;
      }
  EXPECT_EQ(ended, requests.size());
  EXPECT_GT(small->scheduler().stats().num_preemptions, 0);
  small->pool().check_integrity();
}

// The prompt was paid for elsewhere, and what is computed again costs nothing, as after a preemption.
TEST_F(ResumeTest, OnlyNewTokensAreCharged) {
  TextRequest request = base();
  const std::vector<int32_t> all = run(*first_, request).completion.token_ids;
  request.output_so_far.assign(all.begin(), all.begin() + 10);
  std::unique_ptr<TextEngine> fresh = open();
  auto sequence = std::make_unique<TextSequence>();
  ASSERT_TRUE(fresh->text().prepare(request, *sequence).ok());
  EXPECT_EQ(sequence->reserved_tokens, kLength - 10);
  EXPECT_EQ(sequence->counted_prompt_tokens(), 0);
  sequence->asked.id = 1;
  sequence->asked.tenant = 3;
  ASSERT_TRUE(fresh->submit(sequence).ok());
  while (fresh->has_work()) fresh->step();
  const TenantService& paid = fresh->scheduler().tenants().at(3);
  EXPECT_EQ(paid.prompt_tokens, 0);
  EXPECT_EQ(paid.cached_tokens, 0);
  EXPECT_EQ(paid.output_tokens, kLength - 10);
  EXPECT_EQ(paid.service, ServiceCost().of(0, kLength) - ServiceCost().of(0, 10));
}

TEST_F(ResumeTest, RefusesWhatCannotGoOn) {
  const auto message = [](TextRequest request) { return std::string(refusal(std::move(request)).message()); };
  TextRequest request = base();
  request.output_so_far.assign(static_cast<size_t>(kLength), 40);
  EXPECT_NE(message(request).find("output_so_far has 24 tokens: it must have fewer than max_tokens (24)"),
            std::string::npos)
      << message(request);
  request = base();
  request.output_so_far = {40, 1 << 20};
  EXPECT_NE(message(request).find("token id 1048576 at position 1, outside the vocabulary"), std::string::npos);
  request.output_so_far = {40, -1};
  EXPECT_NE(message(request).find("token id -1 at position 1"), std::string::npos);
  request.output_so_far = {40, 41};
  request.stop_token_ids = {41};
  EXPECT_NE(message(request).find("stop token 41 at position 1: the answer is complete"), std::string::npos);
  request = base();
  const Completion all = run(*first_, request).completion;
  request.output_so_far.assign(all.token_ids.begin(), all.token_ids.begin() + 10);
  request.stop = {all.text.substr(2, 3)};
  EXPECT_NE(message(request).find("has reached the stop string"), std::string::npos) << message(request);
  request = base();
  request.grammar = compile_grammar({.kind = GrammarSpec::Kind::kRegex, .text = "[0-9]+"}, *vocabulary_).value();
  request.output_so_far = all.token_ids;
  request.output_so_far.resize(3);
  EXPECT_NE(message(request).find("where the request's grammar or allowed_token_ids forbid it"), std::string::npos);
  request = base();
  request.embed = true;
  request.output_so_far = {40};
  EXPECT_EQ(refusal(request).code(), StatusCode::kInvalidArgument) << "there is no output to go on with";
  EXPECT_FALSE(second_->has_work());
}

}  // namespace
}  // namespace lk
