// SPDX-License-Identifier: Apache-2.0
// The ledger of a model directory's tensors. Values against transformers: tests/engine/hub_golden_test.cpp.
#include "lk/io/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "lk/base/file.h"
#include "lk/io/weight_names.h"
#include "lk/io/weights.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::TempDir;

constexpr const char* kConfig =
    R"({"architectures":["%s"],"hidden_size":8,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,
        "num_hidden_layers":2,"intermediate_size":12,"vocab_size":10,"tie_word_embeddings":%s})";

struct Directory {
  TempDir dir;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, float> first;  // element 0; all others are 0

  Directory(const std::string& architecture, bool tied) {
    char text[512];
    std::snprintf(text, sizeof text, kConfig, architecture.c_str(), tied ? "true" : "false");
    EXPECT_TRUE(write_file_atomic(dir.file("config.json"), text).ok());
    for (const WeightSpec& spec : weight_manifest(*load_model_config(dir.path()))) shapes[spec.name] = spec.shape;
  }
  // Every name through `rename`; an empty one is left out.
  Directory& rename(const std::function<std::string(const std::string&)>& to) {
    std::map<std::string, std::vector<int64_t>> renamed;
    for (const auto& [name, shape] : shapes)
      if (const std::string own = to(name); !own.empty()) renamed[own] = shape;
    shapes = std::move(renamed);
    return *this;
  }
  Result<Checkpoint> open() {
    std::vector<TensorEntry> entries;
    std::vector<std::vector<float>> values;
    for (const auto& [name, shape] : shapes) {
      values.emplace_back(256);
      values.back()[0] = first[name];
      entries.push_back({name, TensorView(values.back().data(), DType::kF32, std::span<const int64_t>(shape))});
    }
    EXPECT_TRUE(write_safetensors(dir.file("model.safetensors"), entries).ok());
    return open_checkpoint(dir.path());
  }
};

TEST(Checkpoint, KeepsTheFilesOwnStoreWhereNothingIsToDo) {
  const Checkpoint checkpoint = Directory("LlamaForCausalLM", false).open().value();
  EXPECT_EQ(checkpoint.weights, checkpoint.files);
  EXPECT_THAT(checkpoint.warnings, IsEmpty());
}

TEST(Checkpoint, FindsTheTextModelByAnyOfItsNames) {
  const std::pair<std::string, std::string> kinds[] = {
      {"language_model.model.", "language_model."},  // head: language_model.lm_head
      {"model.language_model.", ""},                 // head: lm_head
      {"model.text_model.", ""},
      {"", ""},
  };
  for (const auto& [decoder, head] : kinds) {
    Directory directory("LlamaForCausalLM", false);
    directory.rename(
        [&](const std::string& name) { return name.starts_with("model.") ? decoder + name.substr(6) : head + name; });
    const Result<Checkpoint> opened = directory.open();
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    EXPECT_THAT(opened->warnings, IsEmpty());
    EXPECT_EQ(opened->weights->tensors().size(), directory.shapes.size());
    EXPECT_NE(opened->weights->find("model.layers.1.mlp.up_proj.weight"), nullptr);
    EXPECT_EQ(opened->file_name("model.norm.weight"), decoder + "norm.weight");
  }
}

TEST(Checkpoint, TheFilesDecideWhetherTheHeadIsTied) {
  const auto with_head = [](bool tied, float value) {
    Directory directory("Qwen3ForCausalLM", tied);
    directory.shapes["lm_head.weight"] = {10, 8};
    directory.first["model.embed_tokens.weight"] = 1;
    directory.first["lm_head.weight"] = value;
    return directory.open().value();
  };
  EXPECT_TRUE(with_head(true, 1).config.tie_word_embeddings);
  EXPECT_EQ(with_head(true, 1).weights->find("lm_head.weight"), nullptr);
  EXPECT_FALSE(with_head(false, 1).config.tie_word_embeddings);
  const Checkpoint lies = with_head(true, 2);
  EXPECT_FALSE(lies.config.tie_word_embeddings);
  EXPECT_NE(lies.weights->find("lm_head.weight"), nullptr);
  EXPECT_THAT(lies.warnings, ElementsAre(HasSubstr("they are not tied")));

  Directory head_only("Qwen3ForCausalLM", true);
  head_only.rename(
      [](const std::string& name) { return name.find("embed") == std::string::npos ? name : "lm_head.weight"; });
  const Checkpoint one = head_only.open().value();
  EXPECT_TRUE(one.config.tie_word_embeddings);
  EXPECT_NE(one.weights->find("model.embed_tokens.weight"), nullptr);
  EXPECT_EQ(one.file_name("model.embed_tokens.weight"), "lm_head.weight");
}

TEST(Checkpoint, OnlyABareDecoderMayLackAHead) {
  const auto no_head = [](const std::string& name) { return name == "lm_head.weight" ? "" : name; };
  Directory causal("MistralForCausalLM", false);
  EXPECT_THAT(causal.rename(no_head).open().status().message(), HasSubstr("\"MistralModel\""));
  Directory bare("MistralModel", false);
  const Checkpoint decoder = bare.rename(no_head).open().value();
  EXPECT_FALSE(decoder.config.has_lm_head);
  Directory with("MistralModel", false);
  EXPECT_TRUE(with.open().value().config.has_lm_head);
}

TEST(Checkpoint, NamesEveryTensorThatIsNotUsed) {
  Directory directory("LlamaForCausalLM", false);
  directory.shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = {4};
  for (int layer = 0; layer < 2; ++layer)
    directory.shapes[fmt::format("model.layers.{}.self_attn.q_proj.bias", layer)] = {8};
  directory.shapes["score.weight"] = {2};
  for (int block = 0; block < 30; ++block) directory.shapes[fmt::format("vision_tower.a{}.b.weight", block)] = {2};
  const Checkpoint checkpoint = directory.open().value();
  EXPECT_THAT(checkpoint.warnings, SizeIs(3));
  EXPECT_THAT(checkpoint.warnings, Contains(HasSubstr("2 tensors such as 'model.layers.0.self_attn.q_proj.bias'")));
  EXPECT_THAT(checkpoint.warnings, Contains(HasSubstr("tensor 'score.weight'")));
  EXPECT_THAT(checkpoint.warnings, Contains(HasSubstr("30 tensors such as 'vision_tower.")));
  EXPECT_EQ(checkpoint.weights->find("score.weight"), nullptr);
}

TEST(Checkpoint, RefusesOneWeightUnderTwoNames) {
  Directory directory("LlamaForCausalLM", false);
  directory.shapes["norm.weight"] = {8};
  EXPECT_THAT(directory.open().status().message(),
              HasSubstr("'model.norm.weight' and 'norm.weight' stand for the same"));
}

TEST(TextModelPath, LeavesOtherNamesAlone) {
  for (const char* name : {"model.layers.0.mlp.up_proj", "lm_head", "vision_tower.layers.0", "normal.weight", "score"})
    EXPECT_EQ(text_model_path(name), name);
  EXPECT_EQ(text_model_path("model.language_model.model.layers.0.x"), "model.layers.0.x");
  EXPECT_EQ(text_model_path("language_model.lm_head"), "lm_head");
  EXPECT_EQ(text_model_path("language_model.layers.0.x"), "model.layers.0.x");
}

}  // namespace
}  // namespace lk
