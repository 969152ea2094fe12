// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <gtest/gtest.h>

#include "lk/engine/engine.h"
#include "lk/lora/compose.h"
#include "lk/model/decoder.h"
#include "lk/ops/cpu_backend.h"
#include "testing/golden.h"
#include "testing/late_backend.h"

namespace lk {
namespace {

using testing::kGoldenDir;

TEST(Footprint, IsWhatLoadingTakes) {
  for (const char* name : {"llama_mha", "llama_gqa_llama3", "qwen3", "mistral_window7"})
    for (const DType act : {DType::kBF16, DType::kF32}) {
      auto backend = make_cpu_backend({.num_threads = 1}).value();
      const auto weights = load_weights(kGoldenDir + "models/" + name, act, *backend).value();
      const ModelFootprint footprint = model_footprint(weights->config, act, 64);
      int64_t loaded = 0;
      for (const DeviceBuffer& buffer : weights->storage) loaded += buffer.size_bytes();
      EXPECT_GE(footprint.packed, loaded) << name;
      EXPECT_LE(footprint.packed, loaded + loaded / 50 + 4096) << name;
      EXPECT_EQ(footprint.embedding, weights->embedding.num_bytes()) << name;
      // A step reads no mapped file.
      EXPECT_NE(weights->embedding.row(0), weights->checkpoint->find("model.embed_tokens.weight")->row(0)) << name;
      EXPECT_EQ(footprint.page, Decoder(weights, *backend, 1, 1).page_bytes()) << name;
    }
}

TEST(Footprint, ActivationsAreWhatADecoderAllocates) {
  for (const DType act : {DType::kBF16, DType::kF32}) {
    testing::LateBackend backend(make_cpu_backend({.num_threads = 1}).value());
    const auto weights = load_weights(kGoldenDir + "models/llama_gqa_llama3", act, backend).value();
    for (const int64_t rows : {1, 63, 300, 1000}) {
      const int64_t before = backend.allocated_bytes();
      const Decoder decoder(weights, backend, rows, std::min(rows, kMaxLogitRows));
      EXPECT_EQ(model_footprint(weights->config, act, rows).activations, backend.allocated_bytes() - before) << rows;
    }
  }
}

// No adapter makes them grow: one that would is refused, where it used to end the program for want of memory.
TEST(Footprint, AdaptersOfTooManyRanksAreRefused) {
  auto backend = make_cpu_backend({.num_threads = 1}).value();
  const auto weights = load_weights(kGoldenDir + "models/llama_mha", DType::kF32, *backend).value();
  const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
  const auto engine =
      Engine::create({.max_step_tokens = 1, .memory_bytes = 4096 * page}, weights, std::move(backend)).value();
  const auto adapter =
      load_adapter("r64", kGoldenDir + "adapters/llama_mha__r64_linear", weights->config, nullptr).value();
  const std::vector<WeightedAdapter> parts(Decoder::kMaxGroupRank / (3 * 64) + 1, {adapter, 1.0});
  const auto sum_of = [&](size_t count) {
    return engine->prepare_adapter(compose_adapters("sum", std::span(parts).first(count)).value());
  };
  EXPECT_TRUE(sum_of(parts.size() - 1).ok());
  EXPECT_EQ(sum_of(parts.size()).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lk
