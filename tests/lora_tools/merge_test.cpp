// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "lk/lora_tools/save.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::TensorBag;
using testing::to_floats;

struct Model {
  explicit Model(const std::string& fields = "", DType dtype = DType::kF32) : config(testing::tiny_config(fields)) {
    testing::write_base(dir, config, testing::tiny_config_json(fields), dtype);
    dir.write("tokenizer.json", "{}");
    dir.write("pytorch_model.bin", "x");
    store = *TensorStore::open_model(dir.path());
  }
  std::shared_ptr<const Adapter> load(const TempDir& adapter_dir) const {
    auto adapter = load_adapter("a", adapter_dir.path(), config, store.get());
    EXPECT_TRUE(adapter.ok()) << adapter.status().message();
    return *adapter;
  }
  TempDir dir;
  ModelConfig config;
  std::shared_ptr<const TensorStore> store;
};

// A random adapter made by init_adapter.
std::shared_ptr<const Adapter> random_adapter(const Model& model, const TempDir& dir, const InitOptions& options) {
  const Status status = init_adapter(model.config, options, dir.path(), model.store.get());
  EXPECT_TRUE(status.ok()) << status.message();
  return model.load(dir);
}

TEST(MergeAdapter, AddsTheDeltaAndCopiesTheRest) {
  const Model model;
  TempDir adapter_dir, out;
  const auto adapter =
      random_adapter(model, adapter_dir, {.rank = 3, .targets = {"q_proj", "down_proj"}, .b_scale = 1.0});
  const auto report = merge_adapter(model.dir.path(), *adapter, out.file("merged"));
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->tensors.size(), 4u);
  EXPECT_EQ(report->total.rounding_norm, 0.0);  // f32 to f32
  const auto merged = *TensorStore::open_model(out.file("merged"));
  EXPECT_TRUE(check_weights(*load_model_config(out.file("merged")), *merged).ok());
  const LoraDelta& delta = *adapter->layers[1][static_cast<size_t>(Proj::kDown)];
  const auto w = to_floats(*model.store->find("model.layers.1.mlp.down_proj.weight")), a = to_floats(delta.a),
             b = to_floats(delta.b);
  const auto got = to_floats(*merged->find("model.layers.1.mlp.down_proj.weight"));
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 24; ++column) {
      double want = w[row * 24 + column];
      for (size_t k = 0; k < 3; ++k) want += delta.scaling * b[row * 3 + k] * a[k * 24 + column];
      EXPECT_NEAR(got[row * 24 + column], want, 1e-5);
    }
  }
  EXPECT_EQ(to_floats(*merged->find("lm_head.weight")), to_floats(*model.store->find("lm_head.weight")));
  EXPECT_TRUE(std::filesystem::exists(out.file("merged/tokenizer.json")));
  EXPECT_FALSE(std::filesystem::exists(out.file("merged/pytorch_model.bin")));
  EXPECT_THAT(render_merge_report(*report), HasSubstr("4 tensors changed"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(out.path()), {}),
            1);  // nothing temporary is left
}

TEST(MergeAdapter, ReportsWhatRoundingCosts) {
  const Model model("", DType::kBF16);
  TempDir adapter_dir, out;
  const auto adapter = random_adapter(model, adapter_dir, {.rank = 4, .b_scale = 0.5});
  const auto report = merge_adapter(model.dir.path(), *adapter, out.file("a"));
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_GT(report->total.relative(), 1e-5);
  EXPECT_LT(report->total.relative(), 0.1);
  EXPECT_EQ((*TensorStore::open_model(out.file("a")))->find("model.norm.weight")->dtype(), DType::kBF16);
  const auto wide = merge_adapter(model.dir.path(), *adapter, out.file("b"), {.dtype = DType::kF32});
  ASSERT_TRUE(wide.ok());
  EXPECT_EQ(wide->total.rounding_norm, 0.0);
  EXPECT_EQ(load_model_config(out.file("b"))->dtype, DType::kF32);
  EXPECT_EQ((*TensorStore::open_model(out.file("b")))->find("model.norm.weight")->dtype(), DType::kF32);
}

TEST(MergeAdapter, UntiesTheHeadWhenOnlyOneEndChanges) {
  const Model model(R"("tie_word_embeddings":true)");
  for (const char* target : {"lm_head", "embed_tokens"}) {
    TempDir adapter_dir, out;
    const auto adapter = random_adapter(model, adapter_dir, {.rank = 2, .targets = {target}, .b_scale = 1.0});
    const auto report = merge_adapter(model.dir.path(), *adapter, out.file("m"));
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_TRUE(report->untied);
    const auto config = load_model_config(out.file("m"));
    EXPECT_FALSE(config->tie_word_embeddings);
    const auto merged = *TensorStore::open_model(out.file("m"));
    EXPECT_TRUE(check_weights(*config, *merged).ok());
    const auto base = to_floats(*model.store->find("model.embed_tokens.weight"));
    EXPECT_EQ(to_floats(*merged->find("lm_head.weight")) == base, target != std::string("lm_head"));
    EXPECT_EQ(to_floats(*merged->find("model.embed_tokens.weight")) == base, target != std::string("embed_tokens"));
  }
}

TEST(MergeAdapter, TrainedTokensKeepTheTie) {
  const Model model(R"("tie_word_embeddings":true)");
  TempDir adapter_dir, out;
  adapter_dir.write("adapter_config.json",
                    R"({"peft_type":"LORA","r":2,"target_modules":["q_proj"],"trainable_token_indices":[5]})");
  TensorBag bag;
  bag.add("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", {1, 16});
  bag.write(adapter_dir.file("adapter_model.safetensors"));
  const auto adapter = model.load(adapter_dir);
  const auto report = merge_adapter(model.dir.path(), *adapter, out.file("m"));
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_FALSE(report->untied);
  const auto merged = *TensorStore::open_model(out.file("m"));
  EXPECT_EQ(merged->find("lm_head.weight"), nullptr);
  EXPECT_EQ(to_floats(merged->find("model.embed_tokens.weight")->slice(5, 6)), to_floats(adapter->trained_token_rows));
}

TEST(MergeAdapter, BiasNeedsAPlaceInTheModel) {
  TempDir adapter_dir, out;
  const Model plain;
  const auto adapter = random_adapter(plain, adapter_dir, {.rank = 2, .targets = {"q_proj"}, .lora_bias = true});
  const auto report = merge_adapter(plain.dir.path(), *adapter, out.file("m"));
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(report.status().message(), HasSubstr("lora_bias"));
  EXPECT_TRUE(std::filesystem::is_empty(out.path()));
  const Model biased(R"("attention_bias":true)");
  ASSERT_TRUE(merge_adapter(biased.dir.path(), *adapter, out.file("m")).ok());
  const auto merged = *TensorStore::open_model(out.file("m"));
  const auto before = to_floats(*biased.store->find("model.layers.0.self_attn.q_proj.bias"));
  const auto added = to_floats(adapter->layers[0][0]->bias);
  EXPECT_NEAR(to_floats(*merged->find("model.layers.0.self_attn.q_proj.bias"))[3], before[3] + 2 * added[3], 1e-6);
}

TEST(MergeAdapter, RefusesToOverwrite) {
  const Model model;
  TempDir adapter_dir, out;
  const auto adapter = random_adapter(model, adapter_dir, {.rank = 1});
  ASSERT_TRUE(merge_adapter(model.dir.path(), *adapter, out.path()).ok());  // empty: allowed
  EXPECT_EQ(merge_adapter(model.dir.path(), *adapter, out.path()).status().code(), StatusCode::kAlreadyExists);
}

TEST(MergeAdapter, F16OverflowIsAnError) {
  const Model model;
  TempDir adapter_dir, out;
  const auto adapter = random_adapter(model, adapter_dir, {.rank = 1, .targets = {"q_proj"}, .b_scale = 1e6});
  const auto report = merge_adapter(model.dir.path(), *adapter, out.file("m"), {.dtype = DType::kF16});
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(report.status().message(), HasSubstr("overflows f16"));
}

}  // namespace
}  // namespace lk
