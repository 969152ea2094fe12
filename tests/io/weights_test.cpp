// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

ModelConfig small_config() {
  auto config = parse_model_config(
      R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":8,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,
          "num_hidden_layers":2,"intermediate_size":12,"vocab_size":10,"attention_bias":true})",
      "test");
  return *config;
}

// A checkpoint of zeros; `change` may edit the specs.
template <class F>
std::shared_ptr<const TensorStore> checkpoint(const TempDir& dir, const ModelConfig& config, F change) {
  std::vector<WeightSpec> specs = weight_manifest(config);
  change(specs);
  std::vector<TensorEntry> entries;
  static const std::vector<float> zeros(1 << 12);
  for (const WeightSpec& spec : specs)
    entries.push_back({spec.name, TensorView(zeros.data(), DType::kF32, std::span<const int64_t>(spec.shape))});
  EXPECT_TRUE(write_safetensors(dir.file("m.safetensors"), entries).ok());
  return *TensorStore::open_file(dir.file("m.safetensors"));
}

TEST(CheckWeights, AcceptsExactlyTheManifest) {
  TempDir dir;
  const ModelConfig config = small_config();
  const auto store = checkpoint(dir, config, [](auto&) {});
  EXPECT_TRUE(check_weights(config, *store).ok());
  EXPECT_TRUE(check_finite(*store, 2).ok());
}

TEST(CheckWeights, NamesMissingAndMisshapenTensors) {
  const ModelConfig config = small_config();
  TempDir dir;
  auto store = checkpoint(dir, config, [](auto& specs) {
    std::erase_if(specs, [](const auto& s) { return s.name == "model.layers.1.self_attn.q_norm.weight"; });
  });
  EXPECT_THAT(check_weights(config, *store).message(),
              HasSubstr("'model.layers.1.self_attn.q_norm.weight' [4] is missing"));
  store = checkpoint(dir, config, [](auto& specs) { specs[0].shape = {11, 8}; });
  EXPECT_THAT(check_weights(config, *store).message(), HasSubstr("shape [11, 8], config.json says [10, 8]"));
}

TEST(CheckFinite, FindsNanAndInfinityInEveryDtype) {
  TempDir dir;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(100'000, 3.0f);
      Buffer stored(100'000 * 4);
      convert(values.data(), DType::kF32, stored.data(), dtype, 100'000);
      EXPECT_EQ(largest_magnitude(TensorView(stored.data(), dtype, {100'000})), 3.0f);
      values[99'999] = bad;
      convert(values.data(), DType::kF32, stored.data(), dtype, 100'000);
      const TensorView view(stored.data(), dtype, {100'000});
      EXPECT_FALSE(std::isfinite(largest_magnitude(view)));
      ASSERT_TRUE(write_safetensors(dir.file("x"), {{"bad", view}}).ok());
      EXPECT_THAT(check_finite(**TensorStore::open_file(dir.file("x"))).message(), HasSubstr("'bad'"));
    }
  }
}

TEST(CheckFinite, RefusesWhatBf16RoundsToInfinity) {
  TempDir dir;
  for (const float value : {kLargestWeight, std::nextafter(kLargestWeight, INFINITY), 3.4e38f}) {
    const float values[] = {1, -value};
    bf16 rounded[2];
    convert(values, DType::kF32, rounded, DType::kBF16, 2);
    const bool finite = std::isfinite(static_cast<float>(rounded[1]));
    EXPECT_EQ(finite, value == kLargestWeight);
    ASSERT_TRUE(write_safetensors(dir.file("x"), {{"big", TensorView(values, DType::kF32, {2})}}).ok());
    const Status status = check_finite(**TensorStore::open_file(dir.file("x")));
    EXPECT_EQ(status.ok(), finite);
    if (finite) continue;
    EXPECT_THAT(status.message(), HasSubstr("tensor 'big' contains a value of magnitude 3."));
  }
}

TEST(LargestMagnitude, IsExactForEveryValueOfTheSmallTypes) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const uint16_t value = static_cast<uint16_t>(bits);
      float expected = 0;
      convert(&value, dtype, &expected, DType::kF32, 1);
      const float largest = largest_magnitude(TensorView(&value, dtype, {1}));
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(largest) : largest == std::abs(expected)) << bits;
    }
}

}  // namespace
}  // namespace lk
