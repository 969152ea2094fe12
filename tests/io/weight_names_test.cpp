// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weight_names.h"

#include <gtest/gtest.h>

#include <set>

namespace lk {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 40;
  config.hidden_dim = 16;
  config.num_layers = 12;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_dim = 24;
  return config;
}

TEST(WeightNames, AreHuggingFaceNames) {
  EXPECT_EQ(module_path(ModuleId::of(11, Proj::kDown)), "model.layers.11.mlp.down_proj");
  EXPECT_EQ(weight_name({ModuleId::of(3, Proj::kQ), true}), "model.layers.3.self_attn.q_proj.bias");
  EXPECT_EQ(weight_name({{0, ModuleKind::kPostNorm}}), "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(weight_name({kEmbedding}), "model.embed_tokens.weight");
  EXPECT_EQ(weight_name({kFinalNorm}), "model.norm.weight");
  EXPECT_EQ(weight_name({kLmHead}), "lm_head.weight");
  EXPECT_EQ(short_name(ModuleId::of(3, Proj::kGate)), "gate_proj");
  EXPECT_EQ(short_name(kEmbedding), "embed_tokens");
}

TEST(WeightNames, EveryModuleIsFoundByItsPath) {
  ModelConfig config = small_config();
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  std::set<std::string> names;
  for (const WeightId weight : model_weights(config)) {
    EXPECT_EQ(find_module(module_path(weight.module), config), weight.module) << weight_name(weight);
    EXPECT_TRUE(names.insert(weight_name(weight)).second) << weight_name(weight);
  }
  EXPECT_EQ(names.size(), 3u + 12u * (4 + 7 + 7));
}

TEST(WeightNames, OthersAreNotFound) {
  const ModelConfig config = small_config();
  for (const char* path :
       {"", "model", "model.layers.", "model.layers.12.self_attn.q_proj", "model.layers.-1.self_attn.q_proj",
        "model.layers.1self_attn.q_proj", "model.layers.1.", "model.layers.1.self_attn.q_proj.x",
        "model.layers.1.lm_head", "model.layers.99999999999.self_attn.q_proj", "embed_tokens", "model.lm_head"})
    EXPECT_FALSE(find_module(path, config)) << path;
}

TEST(WeightNames, OnlyWhatTheConfigHasHasAShape) {
  ModelConfig config = small_config();
  const WeightId bias{ModuleId::of(1, Proj::kK), true}, norm{{1, ModuleKind::kQNorm}};
  EXPECT_FALSE(weight_shape(bias, config));
  EXPECT_FALSE(weight_shape(norm, config));
  EXPECT_FALSE(weight_shape({kLmHead, true}, config));
  config.qkv_bias = config.qk_norm = true;
  EXPECT_EQ(weight_shape(bias, config), std::vector<int64_t>{16});
  EXPECT_EQ(weight_shape(norm, config), std::vector<int64_t>{8});
  EXPECT_FALSE(weight_shape({ModuleId::of(1, Proj::kO), true}, config));
  EXPECT_EQ(weight_shape({ModuleId::of(1, Proj::kO)}, config), (std::vector<int64_t>{16, 32}));
}

}  // namespace
}  // namespace lk
