// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/initial.h"

#include <gmock/gmock.h>

#include <cmath>

#include "testing/golden.h"

namespace lk {
namespace {
using ::testing::HasSubstr;
using testing::kGoldenDir;

struct Base {
  ModelConfig config;
  std::shared_ptr<const TensorStore> store;
};
Base base(const std::string& name) {
  const std::string directory = kGoldenDir + "models/" + name;
  return {load_model_config(directory).value(), TensorStore::open_model(directory).value()};
}

AdapterConfig config(std::vector<std::string> targets, int64_t rank = 4) {
  AdapterConfig config;
  config.rank = rank;
  config.alpha = 8;
  config.target_modules.kind = ModuleSelector::Kind::kList;
  config.target_modules.names = std::move(targets);
  return config;
}

std::vector<float> values(const TensorView& view) {
  std::vector<float> result(static_cast<size_t>(view.num_elements()));
  view.copy_to(result.data());
  return result;
}

// The largest element of B A, and of A.
std::pair<double, double> product(const LoraDelta& delta) {
  const std::vector<float> a = values(delta.a), b = values(delta.b);
  const int64_t in = delta.a.dim(1), out = delta.b.dim(0), rank = delta.rank;
  double largest = 0, scale = 0;
  for (const float value : a) scale = std::max(scale, std::abs(static_cast<double>(value)));
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < rank; ++r)
        sum += static_cast<double>(b[static_cast<size_t>(o * rank + r)]) *
               static_cast<double>(a[static_cast<size_t>(r * in + i)]);
      largest = std::max(largest, std::abs(sum));
    }
  return {largest, scale};
}

TEST(InitialAdapter, EveryInitialisationBeginsAsTheBase) {
  const Base b = base("llama_mha");
  for (const AdapterInit init : {AdapterInit::kDefault, AdapterInit::kGaussian, AdapterInit::kOrthogonal,
                                 AdapterInit::kPissa, AdapterInit::kOlora, AdapterInit::kEva}) {
    const auto made = make_initial_adapter(b.config, config({"q_proj", "down_proj"}), init, 0, 7, *b.store);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const bool converts = init == AdapterInit::kPissa || init == AdapterInit::kOlora;
    EXPECT_EQ(made->frozen_half, converts);
    for (const auto& layer : made->adapter.layers) {
      const auto& delta = layer[static_cast<size_t>(Proj::kQ)];
      ASSERT_TRUE(delta && layer[static_cast<size_t>(Proj::kDown)] && !layer[static_cast<size_t>(Proj::kV)]);
      EXPECT_EQ(delta->rank, converts ? 8 : 4);
      EXPECT_EQ(delta->scaling, 2);  // alpha / r of the rank that was asked for
      const auto [largest, scale] = product(*delta);
      EXPECT_GT(scale, 0) << to_string(init);
      EXPECT_LE(largest, 1e-6 * scale * scale) << to_string(init);
    }
  }
}

TEST(InitialAdapter, DrawsAsPeftDoes) {
  const Base b = base("llama_mha");
  const auto made = make_initial_adapter(b.config, config({"q_proj"}, 8), AdapterInit::kDefault, 0, 7, *b.store);
  const double bound = 1 / std::sqrt(static_cast<double>(b.config.hidden_dim));
  double sum = 0, largest = 0;
  int64_t count = 0;
  for (const auto& layer : made->adapter.layers)
    for (const float value : values(layer[static_cast<size_t>(Proj::kQ)]->a)) {
      sum += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::abs(static_cast<double>(value)));
      ++count;
    }
  EXPECT_LE(largest, bound);
  EXPECT_NEAR(std::sqrt(sum / static_cast<double>(count)), bound / std::sqrt(3.0), 0.1 * bound);  // uniform
}

TEST(InitialAdapter, MultiLoraStacksItsModulesAndBothFactorsAreRandom) {
  const Base b = base("llama_mha");
  const auto made = make_initial_adapter(b.config, config({"q_proj"}), AdapterInit::kDefault, 3, 7, *b.store);
  const auto& delta = made->adapter.layers[0][static_cast<size_t>(Proj::kQ)];
  EXPECT_EQ(delta->rank, 12);
  EXPECT_EQ(delta->scaling, 2);
  for (const float value : values(delta->b)) ASSERT_NE(value, 0);
}

TEST(InitialAdapter, PatternsTokensAndSavedModules) {
  const Base b = base("llama_gqa_llama3");
  AdapterConfig wanted = config({"q_proj", "v_proj"});
  wanted.rank_pattern = {{"layers.0.self_attn.q_proj", 2}, {"q_proj", 6}};
  wanted.alpha_pattern = {{"v_proj", 3}};
  wanted.modules_to_save = {"norm"};
  wanted.trainable_token_indices["embed_tokens"] = {5, 3};
  const auto made = make_initial_adapter(b.config, wanted, AdapterInit::kDefault, 0, 7, *b.store);
  ASSERT_TRUE(made.ok()) << made.status().message();
  const auto rank = [&](size_t layer, Proj proj) {
    return made->adapter.layers[layer][static_cast<size_t>(proj)]->rank;
  };
  EXPECT_EQ(rank(0, Proj::kQ), 2);
  EXPECT_EQ(rank(1, Proj::kQ), 6);
  EXPECT_EQ(rank(1, Proj::kV), 4);
  EXPECT_EQ(made->adapter.layers[0][static_cast<size_t>(Proj::kV)]->scaling, 3.0 / 4);
  EXPECT_TRUE(made->adapter.replaced.final_norm.defined());
  EXPECT_THAT(made->adapter.trained_token_ids, ::testing::ElementsAre(5, 3));
  std::vector<float> row(static_cast<size_t>(b.config.hidden_dim));
  b.store->find("model.embed_tokens.weight")->slice(3, 4).copy_to(row.data());
  EXPECT_EQ(values(made->adapter.trained_token_rows.slice(1, 2)), row);
}

TEST(InitialAdapter, DoraBeginsWithTheNormsOfTheBase) {
  const Base b = base("llama_mha");
  AdapterConfig wanted = config({"q_proj"});
  wanted.use_dora = true;
  const auto made = make_initial_adapter(b.config, wanted, AdapterInit::kDefault, 0, 7, *b.store);
  const std::vector<float> weight = values(*b.store->find("model.layers.0.self_attn.q_proj.weight"));
  const std::vector<float> magnitude = values(made->adapter.layers[0][static_cast<size_t>(Proj::kQ)]->magnitude);
  const auto in = static_cast<size_t>(b.config.hidden_dim);
  for (size_t row = 0; row < magnitude.size(); ++row) {
    double sum = 0;
    for (size_t i = 0; i < in; ++i)
      sum += static_cast<double>(weight[row * in + i]) * static_cast<double>(weight[row * in + i]);
    ASSERT_NEAR(magnitude[row], std::sqrt(sum), 1e-5 * std::sqrt(sum));
  }
}

TEST(InitialAdapter, WhatCannotBeIsSaidByName) {
  const Base b = base("llama_mha");
  const auto error = [&](const AdapterConfig& wanted, AdapterInit init = AdapterInit::kDefault, int64_t modules = 0) {
    const auto made = make_initial_adapter(b.config, wanted, init, modules, 7, *b.store);
    return made.ok() ? std::string("made") : made.status().message();
  };
  EXPECT_THAT(error(config({"q_proj", "query"})), HasSubstr("'query' is not in the model; it has down_proj"));
  EXPECT_THAT(error(config({"q_proj"}, 0)), HasSubstr("rank is 0 of model.layers.0.self_attn.q_proj, out of range"));
  EXPECT_THAT(error(config({"q_proj"}, 513)), HasSubstr("out of range: 1 to 512"));  // which could not be served
  EXPECT_THAT(error(config({"q_proj"}, 3), AdapterInit::kOrthogonal), HasSubstr("even"));
  EXPECT_THAT(error(config({"q_proj"}, 256), AdapterInit::kPissa), HasSubstr("has not that many directions"));
  AdapterConfig wanted = config({"q_proj"});
  wanted.modules_to_save = {"v_proj"};
  EXPECT_THAT(error(wanted), HasSubstr("only lm_head can be trained as a whole"));
  wanted.modules_to_save = {"nowhere"};
  EXPECT_THAT(error(wanted), HasSubstr("'nowhere' is not in the model"));
  wanted = config({"q_proj"});
  wanted.trainable_token_indices["embed_tokens"] = {1, 100000};
  EXPECT_THAT(error(wanted), HasSubstr("token 100000 is outside"));
  wanted.trainable_token_indices["embed_tokens"] = {1, 1};
  EXPECT_THAT(error(wanted), HasSubstr("given twice"));
  wanted = config({"q_proj"});
  wanted.use_dora = true;
  EXPECT_THAT(error(wanted, AdapterInit::kDefault, 2), HasSubstr("choose one"));
  EXPECT_THAT(error(wanted, AdapterInit::kPissa), HasSubstr("a magnitude over the changed one"));
}

}  // namespace
}  // namespace lk
