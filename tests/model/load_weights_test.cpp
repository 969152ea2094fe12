// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "lk/io/safetensors.h"
#include "lk/io/weights.h"
#include "lk/model/weights.h"
#include "lk/ops/cpu_backend.h"
#include "testing/mapped_pages.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 3000, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu"})";

// Of the whole base, as long as it is packed.
int64_t most_mapped = 0;
std::string mapped_path;

TEST(LoadWeights, TheBaseIsNeverInMemoryTwice) {
  const testing::TempDir dir;
  dir.write("config.json", kConfig);
  const ModelConfig config = parse_model_config(kConfig, "config").value();
  std::vector<Buffer> owned;
  std::vector<TensorEntry> tensors;
  for (const WeightSpec& spec : weight_manifest(config)) {
    int64_t elements = 1;
    for (const int64_t extent : spec.shape) elements *= extent;
    Buffer& buffer = owned.emplace_back(elements * 4);
    std::fill_n(buffer.as<float>(), elements, 0.01f);
    tensors.push_back({spec.name, TensorView(buffer.data(), DType::kF32, spec.shape)});
  }
  ASSERT_TRUE(write_safetensors(dir.file("model.safetensors"), tensors).ok());
  mapped_path = std::filesystem::canonical(dir.file("model.safetensors"));
  const auto size = static_cast<int64_t>(std::filesystem::file_size(mapped_path));
  ASSERT_GT(size, 20 << 20);

  const auto backend = make_cpu_backend({.num_threads = 2}).value();
  most_mapped = 0;
  const auto weights = load_weights(dir.path(), DType::kF32, *backend, [](int64_t, int64_t) {
    most_mapped = std::max(most_mapped, testing::mapped_bytes_in_memory(mapped_path));
  });
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  // At most the largest tensor (the head) is there beside what is packed.
  EXPECT_LT(most_mapped, size / 5);
  // The kernel maps some neighbours of a page that is read, perhaps of a tensor that was given back before.
  EXPECT_LT(testing::mapped_bytes_in_memory(mapped_path), size / 10);
  // Whoever reads everything again leaves nothing behind either.
  EXPECT_TRUE(check_finite(*(*weights)->checkpoint, 2).ok());
  (*weights)->checkpoint->content_digest();
  EXPECT_LT(testing::mapped_bytes_in_memory(mapped_path), size / 10);
}

}  // namespace
}  // namespace lk
