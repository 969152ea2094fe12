// SPDX-License-Identifier: Apache-2.0
// Activated adapters (Activation): what comes before the activation is the base's, in pages and tokens.
#include <gtest/gtest.h>

#include "sched/hash_executor.h"

namespace lk {
namespace {

constexpr AdapterId kSharing = HashExecutor::kActivated, kOtherSharing = kSharing + 2, kReplacing = kSharing + 1;

// Of `length` tokens, none of them the invocation but for those at `invocations`.
std::vector<int32_t> prompt_of(int64_t length, std::initializer_list<size_t> invocations, uint64_t seed = 9) {
  std::vector<int32_t> prompt = make_request(0, kBaseModel, length, 1, seed).prompt;
  for (int32_t& token : prompt) token = token == HashExecutor::kInvocation ? 8 : token;
  for (const size_t at : invocations) prompt[at] = HashExecutor::kInvocation;
  return prompt;
}

class ActivationTest : public ::testing::Test {
 protected:
  // Prompt tokens that the request found cached.
  int64_t cached(AdapterId adapter, const std::vector<int32_t>& prompt, int64_t max_tokens = 2) {
    const int64_t before = scheduler_.stats().num_cached_prompt_tokens;
    const Request request{.id = next_++, .adapter = adapter, .prompt = prompt, .max_tokens = max_tokens};
    EXPECT_TRUE(scheduler_.submit(request).ok());
    EXPECT_EQ(run_all(scheduler_, pool_)[request.id].tokens, HashExecutor::expected(request));
    return scheduler_.stats().num_cached_prompt_tokens - before;
  }

  UnifiedPool pool_{64};
  HashExecutor executor_{0, 64};
  Scheduler scheduler_{{.max_step_tokens = 13}, pool_, executor_};
  RequestId next_ = 0;
};

TEST_F(ActivationTest, PagesBeforeItAreTheBases) {
  const std::vector<int32_t> prompt = prompt_of(90, {40});
  EXPECT_EQ(cached(kBaseModel, prompt), 0);
  EXPECT_EQ(cached(kSharing, prompt), 32) << "the page that holds position 40 is the adapter's";
  EXPECT_EQ(cached(kSharing, prompt), 80);
  EXPECT_EQ(cached(kOtherSharing, prompt), 32);
  EXPECT_EQ(cached(kBaseModel, prompt), 80);
  EXPECT_EQ(cached(1, prompt), 0);
}

TEST_F(ActivationTest, TheBaseFindsWhatAnActivatedAdapterComputed) {
  const std::vector<int32_t> prompt = prompt_of(90, {48});
  EXPECT_EQ(cached(kSharing, prompt), 0);
  EXPECT_EQ(cached(kBaseModel, prompt), 48) << "a page ends where the activation begins";
}

TEST_F(ActivationTest, WithoutInvocationTheWholeRequestIsTheBases) {
  const std::vector<int32_t> prompt = prompt_of(40, {});
  EXPECT_EQ(cached(kSharing, prompt, 30), 0);
  std::vector<int32_t> longer = prompt;
  const std::vector<int32_t> output =
      HashExecutor::expected({.adapter = kBaseModel, .prompt = prompt, .max_tokens = 30});
  longer.insert(longer.end(), output.begin(), output.end());
  EXPECT_EQ(cached(kBaseModel, longer), 64) << "its answer, too: invocation tokens are looked for in the prompt alone";
}

TEST_F(ActivationTest, AnAdapterThatReplacesWeightsSharesNothingWithTheBase) {
  const std::vector<int32_t> prompt = prompt_of(90, {40});
  EXPECT_EQ(cached(kBaseModel, prompt), 0);
  EXPECT_EQ(cached(kReplacing, prompt), 0);
  EXPECT_EQ(cached(kReplacing, prompt), 80);
  EXPECT_EQ(cached(kReplacing, prompt_of(90, {40, 70})), 32) << "before the last one its deltas do not act";
}

// The same tokens, computed with deltas and without: where the last invocation is makes the difference.
TEST_F(ActivationTest, ALaterInvocationMeansOtherPages) {
  std::vector<int32_t> once = prompt_of(60, {0}), twice = prompt_of(90, {0, 70});
  std::copy(once.begin(), once.end(), twice.begin());
  for (const AdapterId adapter : {kSharing, kReplacing}) {
    EXPECT_EQ(cached(adapter, once), 0);
    EXPECT_EQ(cached(adapter, twice), 0);
    EXPECT_EQ(cached(adapter, once), 48);
    EXPECT_EQ(cached(adapter, twice), 80);
  }
  EXPECT_EQ(cached(kSharing, prompt_of(90, {0, 75})), 64);
  EXPECT_EQ(cached(kSharing, prompt_of(90, {0, 66})), 64) << "cut in the same page, but at another position";
}

TEST_F(ActivationTest, ForgettingTheAdapterLeavesTheBaseItsPages) {
  const std::vector<int32_t> prompt = prompt_of(90, {40});
  EXPECT_EQ(cached(kSharing, prompt), 0);
  EXPECT_TRUE(scheduler_.drop_adapter(kSharing).has_value());
  pool_.check_integrity();
  EXPECT_EQ(cached(kBaseModel, prompt), 32);
}

// Chunks, preemptions, recomputation, requests that go on after output made elsewhere; few prompts, little memory.
TEST(ActivationTraffic, GivesEachRequestItsOwnTokens) {
  int64_t preemptions = 0, cached_tokens = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    const auto num_pages = static_cast<int64_t>(10 + rng.below(12));
    UnifiedPool pool(num_pages);
    HashExecutor executor(seed, num_pages);
    Scheduler scheduler({.max_step_tokens = static_cast<int64_t>(1 + rng.below(40)),
                         .max_running = static_cast<int64_t>(1 + rng.below(6))},
                        pool, executor);
    std::map<RequestId, Request> requests;
    for (RequestId id = 0; id < 30; ++id) {
      const AdapterId adapters[] = {kBaseModel, 0, kSharing, kOtherSharing, kReplacing};
      Request request = make_request(id, adapters[rng.below(5)], static_cast<int64_t>(1 + rng.below(60)),
                                     static_cast<int64_t>(1 + rng.below(40)), rng.below(2));
      for (int i = 0; i < 2; ++i) request.prompt[rng.below(request.prompt.size())] = HashExecutor::kInvocation;
      if (rng.below(3) == 0) {
        request.output_so_far = HashExecutor::expected(request);
        request.output_so_far.resize(rng.below(request.output_so_far.size()));
      }
      if (scheduler.submit(request).ok()) requests[id] = request;
    }
    const auto outcomes = run_all(scheduler, pool);
    for (const auto& [id, request] : requests) {
      std::vector<int32_t> all = request.output_so_far;
      const std::vector<int32_t>& made = outcomes.at(id).tokens;
      all.insert(all.end(), made.begin(), made.end());
      EXPECT_EQ(all, HashExecutor::expected(request)) << "seed " << seed << " request " << id;
    }
    preemptions += scheduler.stats().num_preemptions;
    cached_tokens += scheduler.stats().num_cached_prompt_tokens;
  }
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(cached_tokens, 1000);
}

}  // namespace
}  // namespace lk
