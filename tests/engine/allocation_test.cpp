// SPDX-License-Identifier: Apache-2.0
// Steps of decoding sequences with adapters of every kind allocate nothing, once the engine has seen their like.
#include "testing/counting_allocator.h"

#include <gtest/gtest.h>

#include "engine/engine_harness.h"

namespace lk {
namespace {

using testing::AllocationCounter;
using testing::EngineHarness;
using testing::SeededExecutor;

class CountingExecutor : public SeededExecutor {
 public:
  using SeededExecutor::SeededExecutor;
  std::span<ItemResult> execute(const StepPlan& plan) override {
    const AllocationCounter counter;
    const std::span<ItemResult> results = SeededExecutor::execute(plan);
    num_allocations += counter.count();
    return results;
  }
  int64_t num_allocations = 0;
};

// `merged`: which of the adapters is to be merged.
void expect_no_allocations(const std::string& model, const std::vector<std::string>& adapters, DType act,
                           std::optional<size_t> merged = {}) {
  const SchedulerOptions options{.max_step_tokens = 256, .max_running = 64};
  EngineHarness harness({model, adapters, act}, options, 4096, 2);
  CountingExecutor executor(*harness.engine, 1);
  UnifiedPool pool(harness.engine->num_pages());
  MergeController merging(sim::make_chooser(sim::Merging::kAlways), pool, executor);
  if (merged) merging.allow(harness.ids[*merged]);
  Scheduler scheduler(options, pool, executor, &merging);
  const auto vocab = static_cast<uint64_t>(harness.engine->weights().config.vocab_size);
  Rng rng(1);
  int64_t num_requests = 0;
  for (int round = 0; round < 3; ++round)
    for (size_t adapter = 0; adapter <= adapters.size(); ++adapter) {
      Request request{.id = num_requests++,
                      .adapter = adapter == adapters.size() ? kBaseModel : harness.ids[adapter],
                      .max_tokens = 120};
      for (int i = 0; i < 9; ++i) request.prompt.push_back(static_cast<int32_t>(rng.below(vocab)));
      request.sampling.temperature = round == 0 ? 0 : 0.7;
      request.sampling.top_p = round == 2 ? 0.9 : 1;
      ASSERT_TRUE(scheduler.submit(std::move(request)).ok());
    }
  const auto step = [&] {
    for (const RequestEvent& event : scheduler.step()) ASSERT_EQ(event.finish, FinishReason::kNone);
  };
  while (scheduler.num_running() < num_requests) step();
  for (int i = 0; i < 30; ++i) step();
  executor.num_allocations = 0;
  const int64_t merged_before = merging.stats().num_merged_steps;
  for (int i = 0; i < 40; ++i) step();  // through the ends of pages
  EXPECT_EQ(merging.stats().num_merged_steps - merged_before, merged ? 40 : 0);
  EXPECT_EQ(scheduler.num_running(), num_requests);
  EXPECT_EQ(executor.num_allocations, 0);
}

TEST(Allocation, DecodingStepsAllocateNothing) {
  if (testing::is_late_backend()) GTEST_SKIP() << "it copies the arguments of every call";
  expect_no_allocations(
      "llama_mha",
      {"r8_attention", "r64_linear", "lora_bias", "dora_r4", "embed_head", "modules_to_save", "tokens", "final_norm"},
      DType::kBF16);
  for (const std::optional<size_t> merged : {std::optional<size_t>(), std::optional<size_t>(0)})
    expect_no_allocations("llama_gqa_llama3", {"r8_linear", "embed", "head", "tokens"}, DType::kF32, merged);
}

TEST(Allocation, IsCounted) {
  const AllocationCounter counter;
  const auto number = std::make_unique<int>(1);
  EXPECT_EQ(counter.count(), *number);
}

}  // namespace
}  // namespace lk
