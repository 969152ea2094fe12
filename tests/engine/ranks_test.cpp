// SPDX-License-Identifier: Apache-2.0
// A model that is divided among ranks (docs/design/tensor_parallel.md). That its answers are the bits of one rank under
// random schedules: isolation_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine_harness.h"
#include "lk/engine/footprint.h"
#include "lk/lora/shard.h"
#include "lk/ops/cpu_backend.h"

namespace lk {
namespace {

using Harness = testing::EngineHarness;
using testing::Output;

const std::vector<std::string> kAdapters = {"r8_linear", "dora_r4", "linears_saved", "fused", "tokens"};

std::map<RequestId, Output> answers(Harness& harness) {
  std::map<RequestId, Output> outputs;
  for (RequestId id = 0; id < 12; ++id) {
    Request request{.id = id, .max_tokens = 12};
    const size_t choice = static_cast<size_t>(id) % (harness.ids.size() + 1);
    if (choice < harness.ids.size()) request.adapter = harness.ids[choice];
    for (int32_t i = 0; i < 9; ++i) request.prompt.push_back((static_cast<int32_t>(id) * 31 + i * 7) % 131);
    request.sampling.num_logprobs = 0;
    request.sampling.num_prompt_logprobs = 0;
    EXPECT_TRUE(harness.scheduler->submit(request).ok());
  }
  while (harness.scheduler->has_work()) harness.take_events(outputs);
  return outputs;
}

// The element of W' that one rank would have, in each of the ranks' own copies.
TEST(RanksTest, MergedCopiesArePartsOfTheWholeCopy) {
  if (testing::is_late_backend()) GTEST_SKIP() << "ranks of one process read one another's memory";
  const std::string directory = testing::kGoldenDir + "adapters/qwen3_ranks4__dora_r4";
  struct Copy {
    std::vector<std::shared_ptr<const MergedWeights>> weights;
    std::vector<RankTeam::Setup> ranks;
    std::vector<Buffer> arenas;
    std::vector<MergeLayout> layouts;
    std::vector<PageId> pages;  // that the weights point to
    RoundingLoss loss;
  };
  const auto merge = [&](int num_ranks) {
    auto copy = std::make_unique<Copy>();
    std::vector<std::shared_ptr<const Adapter>> shards;
    for (int r = 0; r < num_ranks; ++r) {
      RankTeam::Setup& own = copy->ranks.emplace_back();
      own.backend = testing::make_backend({.num_threads = 1});
      own.weights = r == 0 ? load_weights(testing::kGoldenDir + "models/qwen3_ranks4", DType::kBF16, *own.backend,
                                          nullptr, num_ranks)
                                 .value()
                           : load_rank(*copy->ranks[0].weights, r, *own.backend);
      const auto adapter = load_adapter("dora", directory, own.weights->config, own.weights->checkpoint.get()).value();
      shards.push_back(shard_of(adapter, own.weights->rank));
      copy->layouts.emplace_back(*shards.back(), own.weights->shape, own.weights->format(), 4096);
      copy->arenas.emplace_back(copy->layouts.back().num_pages() * 4096);
    }
    for (PageId page = 0; page < copy->layouts[0].num_pages(); ++page) copy->pages.push_back(page);
    std::vector<MergeLayout::Target> targets;
    for (size_t r = 0; r < shards.size(); ++r)
      targets.push_back(
          {copy->layouts[r], *shards[r], *copy->ranks[r].weights, copy->arenas[r].data(), *copy->ranks[r].backend});
    copy->weights = MergeLayout::build(
                        targets, copy->pages, [] { return false; }, &copy->loss)
                        .value();
    return copy;
  };
  const auto whole = merge(1);
  const ModelShape& shape = whole->ranks[0].weights->shape;
  for (const int num_ranks : {2, 4}) {
    const auto divided = merge(num_ranks);
    EXPECT_NEAR(divided->loss.total, whole->loss.total, 1e-6);
    EXPECT_EQ(divided->loss.worst_module, whole->loss.worst_module);
    for (size_t r = 0; r < divided->weights.size(); ++r) {
      const ModelShape& own = divided->ranks[r].weights->shape;
      const auto rank = static_cast<int64_t>(r);
      for (size_t layer = 0; layer < 2; ++layer)
        for (int p = 0; p < kNumProjs; ++p) {
          const auto proj = static_cast<Proj>(p);
          const auto group = static_cast<size_t>(group_of(proj));
          const PackedWeight& part = divided->weights[r]->layers[layer].linear[group];
          const PackedWeight& all = whole->weights[0]->layers[layer].linear[group];
          const bool inputs = divides_inputs(proj);
          for (int64_t out = 0; out < out_dim(proj, own); ++out)
            for (int64_t in = 0; in < in_dim(proj, own); ++in)
              ASSERT_EQ(
                  unpack_weight_at(part, group_column(proj, own) + out, in),
                  unpack_weight_at(all, group_column(proj, shape) + out + (inputs ? 0 : rank * out_dim(proj, own)),
                                   in + (inputs ? rank * in_dim(proj, own) : 0)))
                  << num_ranks << " ranks, " << r << ": layer " << layer << " " << hf_name(proj);
        }
    }
  }
}

// Two sums in a layer for each step, whatever adapters run in it.
TEST(RanksTest, LoraAddsNoCollective) {
  if (testing::is_late_backend()) GTEST_SKIP() << "ranks of one process read one another's memory";
  for (const bool with_adapters : {false, true}) {
    Harness harness({.model = "qwen3_ranks4",
                     .adapters = with_adapters ? kAdapters : std::vector<std::string>{"r8_linear"},
                     .act = DType::kBF16,
                     .num_ranks = 2},
                    {.max_step_tokens = 64}, 4096, 1);
    if (!with_adapters) harness.ids.clear();
    answers(harness);
    const int64_t steps = harness.scheduler->stats().num_steps;
    ASSERT_GT(steps, 0);
    for (size_t rank = 0; rank < 2; ++rank)
      EXPECT_EQ(harness.engine->ranks()[rank].collective->num_sums(),
                steps * 2 * harness.engine->weights().shape.num_layers);
  }
}

TEST(RanksTest, EachHoldsItsPart) {
  for (const DType act : {DType::kF32, DType::kBF16}) {
    for (const char* model : {"qwen3_ranks4", "llama_ranks2"}) {
      Harness whole({.model = model, .adapters = {}, .act = act}, {.max_step_tokens = 64}, 64, 1);
      Harness divided({.model = model, .adapters = {}, .act = act, .num_ranks = 2}, {.max_step_tokens = 64}, 64, 1);
      EXPECT_EQ(divided.engine->num_pages(), whole.engine->num_pages());
      EXPECT_EQ(2 * divided.engine->page_bytes(), whole.engine->page_bytes());
      for (int rank = 0; rank < 2; ++rank) {
        const ModelWeights& own = *divided.engine->ranks()[static_cast<size_t>(rank)].weights;
        EXPECT_EQ(own.shape.num_heads * 2, own.config.num_heads);
        EXPECT_EQ(own.shape.intermediate_dim * 2, own.config.intermediate_dim);
        EXPECT_EQ(own.lm_head.n, rank == 0 ? own.config.vocab_size : 0);
        const ModelFootprint footprint = model_footprint(own.config, act, 64, {rank, 2});
        int64_t packed = 0;
        for (const DeviceBuffer& buffer : own.storage) packed += buffer.size_bytes();
        EXPECT_LE(packed, footprint.packed);
        EXPECT_GT(packed, footprint.packed * 9 / 10);
        EXPECT_EQ(footprint.page, divided.engine->page_bytes());
      }
    }
  }
}

TEST(RanksTest, AnErrorSaysHowManyTheShapeAllows) {
  const auto backend = testing::make_backend({.num_threads = 1});
  const auto error = [&](const char* model, int ranks) {
    return load_weights(testing::kGoldenDir + "models/" + model, DType::kF32, *backend, nullptr, ranks).status();
  };
  EXPECT_EQ(error("qwen3_ranks4", 3).code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(error("qwen3_ranks4", 8).message(),
              ::testing::HasSubstr("8 heads, 4 KV heads and an MLP of 128 allow --tensor-parallel 1, 2 or 4, not 8"));
  EXPECT_THAT(error("llama_ranks2", 4).message(), ::testing::HasSubstr("allow --tensor-parallel 1 or 2, not 4"));
  EXPECT_THAT(error("llama_mha", 2).message(), ::testing::HasSubstr("allow --tensor-parallel 1, not 2"));
  EXPECT_FALSE(error("qwen3_ranks4", 0).ok());
}

}  // namespace
}  // namespace lk
