// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <gtest/gtest.h>

#include "lk/model/decoder.h"
#include "lk/ops/cpu_backend.h"
#include "testing/golden.h"

namespace lk {
namespace {

using testing::kGoldenDir;

TEST(Footprint, IsWhatLoadingTakes) {
  for (const char* name : {"llama_mha", "llama_gqa_llama3", "qwen3", "mistral_window7"})
    for (const DType act : {DType::kBF16, DType::kF32}) {
      auto backend = make_cpu_backend({.num_threads = 1}).value();
      const auto weights = load_weights(kGoldenDir + "models/" + name, act, *backend).value();
      const ModelFootprint footprint = model_footprint(weights->config, act, 64);
      int64_t loaded = -weights->embedding.num_bytes();  // counted on its own
      for (const DeviceBuffer& buffer : weights->storage) loaded += buffer.size_bytes();
      EXPECT_GE(footprint.packed, loaded) << name;
      EXPECT_LE(footprint.packed, loaded + loaded / 50 + 4096) << name;
      EXPECT_EQ(footprint.embedding, weights->embedding.num_bytes()) << name;
      // A step reads no mapped file.
      EXPECT_NE(weights->embedding.row(0), weights->checkpoint->find("model.embed_tokens.weight")->row(0)) << name;
      EXPECT_EQ(footprint.page, Decoder(weights, *backend, 1, 1).page_bytes()) << name;
    }
}

TEST(Footprint, ActivationsGrowWithRowsAndWithTheLogitsOfABlock) {
  const ModelConfig config = load_model_config(kGoldenDir + "models/llama_mha").value();
  const auto activations = [&](int64_t rows) { return model_footprint(config, DType::kBF16, rows).activations; };
  EXPECT_GE(activations(1), config.vocab_size * 4 + config.hidden_dim * 8);
  const int64_t more = activations(129) - activations(128);  // beyond a block of logits
  EXPECT_EQ(activations(1128) - activations(128), 1000 * more);
  EXPECT_EQ(activations(64) - activations(63), more + align_panel(config.vocab_size) * 4 + config.hidden_dim * 6);
}

}  // namespace
}  // namespace lk
