// SPDX-License-Identifier: Apache-2.0
#include "lk/train/run_plan.h"

#include <gmock/gmock.h>

#include <charconv>

#include "lk/base/file.h"
#include "lk/ops/cpu_backend.h"

namespace lk {
namespace {

using ::testing::HasSubstr;

ModelConfig small_config(int64_t num_layers) {
  return parse_model_config(
             fmt::format(R"({{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
                 "intermediate_size": 192, "num_hidden_layers": {}, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "vocab_size": 500, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu"}})",
                         num_layers),
             "config")
      .value();
}

class RunPlanTest : public ::testing::Test {
 protected:
  RunPlanTest() {
    config_ = small_config(6);
    backend_ = make_cpu_backend({.num_threads = 1}).value();
    weights_ = make_dummy_weights(config_, DType::kF32, 1, *backend_);
    run_.block_tokens = 1024;
    needs_.ranks = {48, 16, 32, 16, 0};
  }
  Result<RunPlan> plan(int64_t available) const {
    const PlannedJob job{.state_bytes = kStates, .needs = needs_};
    return plan_run(run_, weights_, *backend_, std::span(&job, 1), {.available = available});
  }
  int64_t activations(Checkpointing level, int64_t rows) const {
    return TrainPass::memory_bytes(weights_, *backend_, {.max_rows = rows, .needs = needs_, .checkpointing = level});
  }

  static constexpr int64_t kStates = 1 << 20;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
  RunConfig run_;
  PassNeeds needs_;
};

TEST_F(RunPlanTest, ComputesAgainAsLittleAsTheMemoryAllows) {
  for (const Checkpointing level : {Checkpointing::kNone, Checkpointing::kSelective, Checkpointing::kFull}) {
    const int64_t enough = activations(level, run_.block_tokens) + kStates;
    const auto fits = plan(enough);
    ASSERT_TRUE(fits.ok()) << fits.status().message();
    EXPECT_EQ(fits->memory.checkpointing, level);
    EXPECT_EQ(fits->pass.checkpointing, level);
    EXPECT_EQ(fits->memory.activations + fits->memory.states, enough);
    const auto tight = plan(enough - 1);
    EXPECT_TRUE(!tight.ok() || tight->memory.checkpointing > level);
  }
}

TEST_F(RunPlanTest, ALevelThatIsGivenIsKept) {
  run_.checkpointing = Checkpointing::kNone;
  EXPECT_EQ(plan(INT64_MAX / 2)->memory.checkpointing, Checkpointing::kNone);
  EXPECT_EQ(plan(activations(Checkpointing::kFull, run_.block_tokens) + kStates).status().code(),
            StatusCode::kResourceExhausted);
}

TEST_F(RunPlanTest, ALimitOfTheRunCountsTheBase) {
  const int64_t base = plan(INT64_MAX / 2)->memory.base;
  run_.memory_bytes = base + kStates + activations(Checkpointing::kNone, run_.block_tokens);
  EXPECT_EQ(plan(0)->memory.total(), run_.memory_bytes);
  run_.memory_bytes = base - 1;
  EXPECT_THAT(plan(INT64_MAX / 2).status().message(), HasSubstr("train fewer jobs at once"));
}

TEST_F(RunPlanTest, WhatIsThereAlreadyAndWhatAnEngineMayTakeCount) {
  const PlannedJob job{.state_bytes = kStates, .making_bytes = 1000, .needs = needs_};
  const auto plan = [&](const MemoryNow& now) { return plan_run(run_, weights_, *backend_, std::span(&job, 1), now); };
  const int64_t needed = activations(Checkpointing::kNone, run_.block_tokens) + kStates + 1000;
  const TrainMemory memory = plan({.available = INT64_MAX / 2, .held = 70'000, .reserved = 5'000'000})->memory;
  EXPECT_EQ(memory.total(), memory.base + needed + 5'070'000);
  // What the machine has left is beside what is held; what an engine may take is not yet taken.
  EXPECT_EQ(plan({.available = needed + 5'000'000, .held = 1 << 30, .reserved = 5'000'000})->memory.checkpointing,
            Checkpointing::kNone);
  EXPECT_GT(plan({.available = needed + 4'999'999, .reserved = 5'000'000})->memory.checkpointing, Checkpointing::kNone);
  // A limit of the run is for all of it.
  run_.memory_bytes = memory.total();
  EXPECT_EQ(plan({.held = 70'000, .reserved = 5'000'000})->memory.checkpointing, Checkpointing::kNone);
  EXPECT_GT(plan({.held = 70'001, .reserved = 5'000'000})->memory.checkpointing, Checkpointing::kNone);
}

TEST_F(RunPlanTest, ThreadsNeedRoomForTheLongestSample) {
  const auto bytes = [&](int num_threads, int64_t longest) {
    const auto backend = make_cpu_backend({.num_threads = num_threads}).value();
    return TrainPass::memory_bytes(weights_, *backend, {.max_rows = 1024, .longest_sample = longest, .needs = needs_});
  };
  const int64_t one = bytes(1, 100), two = bytes(2, 100);
  EXPECT_GT(two, one);
  EXPECT_EQ(bytes(3, 100), two + (two - one));
  EXPECT_GT(bytes(1, 1000), one);
  EXPECT_EQ(bytes(1, 0), bytes(1, 1024));
  EXPECT_EQ(bytes(1, 5000), bytes(1, 1024));
}

// The largest block that a jobs file may name, on a base larger than any: too much, and counted right.
TEST_F(RunPlanTest, NoBlockIsTooLargeToBeCounted) {
  run_ = parse_run_config("base: x\nblock_tokens: 16777216\njobs: [{name: a, data: {path: d}}]", "x").value();
  EXPECT_FALSE(parse_run_config("base: x\nblock_tokens: 16777217\njobs: [{name: a, data: {path: d}}]", "x").ok());
  auto weights = std::make_shared<ModelWeights>();
  weights->config = parse_model_config(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 512, "num_attention_heads": 512,
      "num_key_value_heads": 512, "vocab_size": 1000000, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
      "hidden_act": "silu"})",
                                       "config")
                        .value();
  weights->shape = weights->config.shape();
  weights->act = DType::kF32;
  weights_ = weights;
  const Status status = plan(int64_t{1} << 40).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  for (const Checkpointing level : {Checkpointing::kNone, Checkpointing::kSelective, Checkpointing::kFull})
    EXPECT_GT(activations(level, 1 << 24), 2 * activations(level, 1 << 22)) << to_string(level);
}

TEST_F(RunPlanTest, ARefusalNamesTheLargestBlockThatFits) {
  const int64_t available = kStates + activations(Checkpointing::kFull, 700);
  const std::string message = plan(available).status().message();
  const size_t at = message.find("a block of ");
  ASSERT_NE(at, std::string::npos) << message;
  int64_t rows = 0;
  std::from_chars(message.data() + at + 11, message.data() + message.size(), rows);
  EXPECT_GE(rows, 700);
  EXPECT_LE(kStates + activations(Checkpointing::kFull, rows), available);
  EXPECT_GT(kStates + activations(Checkpointing::kFull, rows + 1), available);
}

// TinyLlama's shape in bf16, rank 16 on all linears, blocks of 2,048 tokens; no weights are needed to say so. What
// attention leaves with a thread is not the block's: it goes by the longest sample and the threads.
TEST(TrainMemory, OfATokenAtTheReferenceShape) {
  const auto backend = make_cpu_backend({.num_threads = 1}).value();
  const auto weights = std::make_shared<ModelWeights>();
  weights->config = parse_model_config(read_file("tools/reliability/tinyllama.json").value(), "config").value();
  weights->shape = weights->config.shape();
  constexpr int64_t kTokens = 2048;
  const RowRange sample{0, kTokens};
  const int64_t of_threads =
      backend->train_ops().block_attention_scratch_bytes({.act = weights->act,
                                                          .num_heads = weights->shape.num_heads,
                                                          .num_kv_heads = weights->shape.num_kv_heads,
                                                          .head_dim = weights->shape.head_dim,
                                                          .sequences = std::span(&sample, 1)});
  const auto mib_a_token = [&](Checkpointing level) {
    const TrainPassOptions options{
        .max_rows = kTokens, .needs = {.ranks = {48, 16, 32, 16, 0}}, .checkpointing = level};
    const int64_t bytes = TrainPass::memory_bytes(weights, *backend, options) - of_threads;
    return static_cast<double>(bytes) / kTokens / (1 << 20);
  };
  EXPECT_LE(mib_a_token(Checkpointing::kFull), 0.2);
  EXPECT_LE(mib_a_token(Checkpointing::kSelective), 0.6);
  EXPECT_LE(mib_a_token(Checkpointing::kNone), 1.05);
}

}  // namespace
}  // namespace lk
