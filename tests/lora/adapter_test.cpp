// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempDir;
using testing::TensorBag;
using testing::to_floats;

const std::string kQ = "base_model.model.model.layers.0.self_attn.q_proj";
const std::string kList = R"("peft_type":"LORA","r":2,"lora_alpha":6,"target_modules":["q_proj"])";

class LoadAdapter : public ::testing::Test {
 protected:
  LoadAdapter() {
    for (int layer = 0; layer < 2; ++layer) {
      const std::string path = fmt::format("base_model.model.model.layers.{}.self_attn.q_proj", layer);
      bag_.add(path + ".lora_A.weight", {2, 16}).add(path + ".lora_B.weight", {16, 2});
    }
  }
  Result<std::shared_ptr<const Adapter>> load(const std::string& fields = kList) {
    dir_.write("adapter_config.json", "{" + fields + "}");
    bag_.write(dir_.file("adapter_model.safetensors"));
    return load_adapter("a", dir_.path(), config_, nullptr, options_);
  }
  std::shared_ptr<const Adapter> loaded(const std::string& fields = kList) {
    auto adapter = load(fields);
    EXPECT_TRUE(adapter.ok()) << adapter.status().message();
    return adapter.ok() ? *adapter : std::make_shared<const Adapter>();
  }
  void expect_refused(const std::string& fields, const std::string& part) {
    const auto adapter = load(fields);
    ASSERT_FALSE(adapter.ok()) << "expected: " << part;
    EXPECT_THAT(adapter.status().message(), HasSubstr(part));
    EXPECT_THAT(adapter.status().message(), HasSubstr(dir_.path()));
  }
  const LoraDelta& delta(const Adapter& adapter, int layer, Proj proj) {
    return *adapter.layers[static_cast<size_t>(layer)][static_cast<size_t>(proj)];
  }

  TempDir dir_;
  TensorBag bag_;
  ModelConfig config_ = testing::tiny_config();
  AdapterLoadOptions options_;
};

TEST_F(LoadAdapter, ReadsAPlainOne) {
  const auto adapter = loaded();
  EXPECT_THAT(adapter->warnings, IsEmpty());
  EXPECT_EQ(adapter->max_rank, 2);
  const LoraDelta& q = delta(*adapter, 1, Proj::kQ);
  EXPECT_EQ(q.rank, 2);
  EXPECT_EQ(q.scaling, 3.0);
  EXPECT_TRUE(q.a.has_shape({2, 16}) && q.b.has_shape({16, 2}));
  EXPECT_FALSE(q.bias.defined() || q.magnitude.defined() || q.dora_scale.defined());
  EXPECT_FALSE(adapter->layers[0][static_cast<size_t>(Proj::kK)].has_value());
  EXPECT_EQ(adapter->digest.size(), 64u);
  EXPECT_EQ(adapter->digest, loaded()->digest);
  EXPECT_NE(adapter->digest, loaded(kList + R"(,"lora_dropout":0.1)")->digest);
}

TEST_F(LoadAdapter, AcceptsOtherSpellingsOfTensorNames) {
  for (const std::string prefix : {"", "base_model.", "base_model.model.", "_orig_mod.base_model.model.",
                                   "module.base_model.model.", "base_model.model._fsdp_wrapped_module."}) {
    for (const std::string adapter_name : {"", ".default", ".my-adapter"}) {
      bag_ = TensorBag();
      for (int layer = 0; layer < 2; ++layer) {
        const std::string path = fmt::format("{}model.layers.{}.self_attn.q_proj", prefix, layer);
        bag_.add(path + ".lora_A" + adapter_name + ".weight", {2, 16}, DType::kBF16);
        bag_.add(path + ".lora_B" + adapter_name + ".weight", {16, 2}, DType::kF16);
      }
      EXPECT_THAT(loaded()->warnings, IsEmpty()) << prefix << adapter_name;
    }
  }
}

TEST_F(LoadAdapter, SplitsFusedProjectionsWithoutCopying) {
  bag_ = TensorBag();
  for (int layer = 0; layer < 2; ++layer) {
    const std::string path = fmt::format("base_model.model.model.layers.{}.", layer);
    bag_.add(path + "self_attn.qkv_proj.lora_A.weight", {2, 16})
        .add(path + "self_attn.qkv_proj.lora_B.weight", {32, 2});
    bag_.add(path + "mlp.gate_up_proj.lora_A.weight", {2, 16}).add(path + "mlp.gate_up_proj.lora_B.weight", {48, 2});
  }
  const auto adapter =
      loaded(R"("peft_type":"LORA","r":2,"target_modules":["q_proj","k_proj","v_proj","gate_proj","up_proj"])");
  EXPECT_THAT(adapter->warnings, IsEmpty());
  const LoraDelta &q = delta(*adapter, 0, Proj::kQ), &k = delta(*adapter, 0, Proj::kK),
                  &v = delta(*adapter, 0, Proj::kV);
  EXPECT_EQ(q.a.raw(), v.a.raw());
  EXPECT_TRUE(q.b.has_shape({16, 2}) && k.b.has_shape({8, 2}) && v.b.has_shape({8, 2}));
  EXPECT_EQ(v.b.raw(), static_cast<const float*>(q.b.raw()) + 48);
  EXPECT_TRUE(delta(*adapter, 1, Proj::kUp).b.has_shape({24, 2}));
  bag_.add(kQ + ".lora_A.weight", {2, 16}).add(kQ + ".lora_B.weight", {16, 2});
  expect_refused(kList, "adapted twice");
}

TEST_F(LoadAdapter, ScalingFollowsPatterns) {
  const auto adapter = loaded(kList + R"(,"alpha_pattern":{"layers.1.self_attn.q_proj":5,"q_proj":7})");
  EXPECT_EQ(delta(*adapter, 0, Proj::kQ).scaling, 3.5);
  EXPECT_EQ(delta(*adapter, 1, Proj::kQ).scaling, 2.5);
  EXPECT_EQ(
      delta(*loaded(R"("peft_type":"LORA","r":2,"lora_alpha":2.5,"target_modules":["q_proj"])"), 0, Proj::kQ).scaling,
      1.25);
  EXPECT_DOUBLE_EQ(delta(*loaded(kList + R"(,"use_rslora":true)"), 0, Proj::kQ).scaling, 6 / std::sqrt(2.0));
  EXPECT_EQ(delta(*loaded(R"("peft_type":"LORA","lora_alpha":6,"target_modules":["q_proj"])"), 0, Proj::kQ).rank, 2);
}

TEST_F(LoadAdapter, WarnsWhereFileAndConfigDisagree) {
  EXPECT_THAT(loaded(kList + R"(,"rank_pattern":{"^q_proj":3})")->warnings,
              ElementsAre(HasSubstr("\"^q_proj\" matches no module")));
  EXPECT_THAT(loaded(R"("peft_type":"LORA","r":2,"target_modules":["q_proj","v_proj"])")->warnings,
              ElementsAre(HasSubstr("2 modules without tensors: model.layers.0.self_attn.v_proj")));
  EXPECT_THAT(loaded(R"("peft_type":"LORA","r":2,"target_modules":["k_proj"])")->warnings.size(), 2u);
  EXPECT_THAT(loaded(kList + R"(,"new_feature":1)")->warnings, ElementsAre(HasSubstr("unknown key \"new_feature\"")));
  EXPECT_THAT(loaded(kList + R"(,"fan_in_fan_out":true)")->warnings, ElementsAre(HasSubstr("fan_in_fan_out")));
}

TEST_F(LoadAdapter, RefusesRanksThatContradict) {
  expect_refused(R"("peft_type":"LORA","r":8,"target_modules":["q_proj"])",
                 "has rank 2, adapter_config.json says 8 (r)");
  expect_refused(kList + R"(,"rank_pattern":{"layers.1.*":4})", "says 4 (rank_pattern \"layers.1.*\")");
  bag_.add(kQ + ".lora_B.weight", {16, 3});
  expect_refused(kList, "differ in rank");
  bag_.add(kQ + ".lora_B.weight", {16, 2});
  options_.max_rank = 1;
  expect_refused(kList, "rank 2 exceeds the limit of 1");
}

TEST_F(LoadAdapter, RefusesShapesOfAnotherBase) {
  bag_.add(kQ + ".lora_A.weight", {2, 32});
  expect_refused(kList, "has shape [2, 32], this base needs [r, 16]; adapter for another base?");
  bag_.add(kQ + ".lora_A.weight", {2, 16}).add(kQ + ".lora_B.weight", {32, 2});
  expect_refused(kList, "this base needs [16, r]");
  bag_.add(kQ + ".lora_A.weight", {32}).add(kQ + ".lora_B.weight", {16, 2});
  expect_refused(kList, "has shape [32]");
}

TEST_F(LoadAdapter, RefusesIncompletePairs) {
  bag_.erase(kQ + ".lora_B.weight");
  expect_refused(kList, "lora_A and lora_B belong together");
}

TEST_F(LoadAdapter, RefusesTensorsThatMatchNothing) {
  for (int layer = 2; layer < 9; ++layer) {
    bag_.add(fmt::format("base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight", layer), {2, 16});
  }
  expect_refused(kList, "layers.2.self_attn.q_proj.lora_A.weight");
  expect_refused(kList, "and 2 more");
  options_.ignore_unknown_tensors = true;
  EXPECT_THAT(loaded()->warnings, ElementsAre(HasSubstr("ignored tensors")));
}

TEST_F(LoadAdapter, RefusesTensorsOfUnknownKinds) {
  for (const char* suffix : {".lora_diag.weight", ".lora_C.weight", ".hada_w1_a", ".lora_A.a.b.weight"}) {
    TensorBag keep;
    bag_.add(kQ + suffix, {2});
    expect_refused(kList, suffix);
    bag_.erase(kQ + suffix);
  }
  bag_.add("base_model.model.score.weight", {2, 16});
  expect_refused(kList, "score.weight");
}

TEST_F(LoadAdapter, RefusesNonFiniteValues) {
  std::vector<float> values(32, 0.0f);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  bag_.set(kQ + ".lora_A.weight", {2, 16}, values);
  expect_refused(kList, "'" + kQ + ".lora_A.weight' contains NaN");
}

TEST_F(LoadAdapter, RefusesVariantsByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("use_qalora":true)", "use_qalora"},
      {R"("use_bdlora":{"nblocks":2})", "use_bdlora"},
      {R"("kasa_config":{"a":1})", "kasa_config"},
      {R"("arrow_config":{"a":1})", "arrow_config"},
      {R"("velora_config":{"a":1})", "velora_config"},
      {R"("monteclora_config":{"a":1})", "monteclora_config"},
      {R"("layer_replication":[[0,2],[1,2]])", "layer_replication"},
      {R"("target_parameters":["experts.w"])", "target_parameters"},
      {R"("megatron_config":{"a":1})", "megatron_config"},
      {R"("bias":"some")", "\"bias\" must be one of"},
      {R"("init_lora_weights":"pissa_niter_4")", "path_initial_model_for_weight_conversion"},
      {R"("init_lora_weights":"corda")", "path_initial_model_for_weight_conversion"},
      {R"("init_lora_weights":"lora_ga")", "path_initial_model_for_weight_conversion"},
      {R"("init_lora_weights":"loftq")", "quantised base"},
      {R"("init_lora_weights":"new")", "\"new\" is not known"},
      {R"("init_lora_weights":"pissa")", "needs the base model's weights"},
      {R"("init_lora_weights":"olora")", "needs the base model's weights"},
      {R"("layers_pattern":"layers")", "layers_pattern needs layers_to_transform"},
      {R"("lora_bias":true,"use_dora":true)", "exclude each other"},
      {R"("use_dora":true)", "no lora_magnitude_vector"},
      {R"("r":0)", "\"r\" must be from 1 to 65536, is 0"},
      {R"("lora_alpha":"x")", "lora_alpha"},
      {R"("rank_pattern":{"(":2})", "regular expression"},
      {R"("rank_pattern":[1])", "must be an object"},
  };
  for (const auto& [field, part] : cases) expect_refused(kList + "," + field, part);
  expect_refused(R"("peft_type":"IA3")", "peft_type IA3");
  expect_refused(R"("r":8)", "no \"peft_type\"");
  expect_refused(R"("peft_type":"LORA","target_modules":"q.*","layers_to_transform":[1])", "regular expression");
}

TEST_F(LoadAdapter, EmptyVariantKeysAreHarmless) {
  EXPECT_THAT(
      loaded(
          kList +
          R"(,"use_qalora":false,"qalora_group_size":16,"layer_replication":null,"loftq_config":{},"target_parameters":[],
                     "megatron_config":null,"megatron_core":"megatron.core","bias":"none","init_lora_weights":"gaussian","eva_config":null)")
          ->warnings,
      IsEmpty());
}

TEST_F(LoadAdapter, RefusesPickleAndNothing) {
  dir_.write("adapter_config.json", "{" + kList + "}");
  EXPECT_THAT(load_adapter("a", dir_.path(), config_, nullptr).status().message(),
              HasSubstr("no adapter_model.safetensors"));
  dir_.write("adapter_model.bin", "x");
  EXPECT_THAT(load_adapter("a", dir_.path(), config_, nullptr).status().message(), HasSubstr("safe_serialization"));
  EXPECT_EQ(load_adapter("a", dir_.file("missing"), config_, nullptr).status().code(), StatusCode::kNotFound);
  bag_ = TensorBag();
  expect_refused(kList, "holds no adapter tensors");
}

// Finite as they stand, infinite as they are used: each used to pass, and its requests answered token 0 with NaN.
TEST_F(LoadAdapter, RefusesValuesThatOverflowInUse) {
  const auto with = [&](const std::string& name, const std::vector<int64_t>& shape, float value) {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    std::vector<float> values(static_cast<size_t>(n), 0.5f);
    values.back() = -value;
    bag_.set(name, shape, values);
  };
  const std::string a = kQ + ".lora_A.weight", b = kQ + ".lora_B.weight", bias = kQ + ".lora_B.bias";
  const std::string q = "module 'model.layers.0.self_attn.q_proj'";
  with(a, {2, 16}, 3.4e38f);
  expect_refused(kList, "'" + a + "' contains a value of magnitude 3.4e+38, which is infinite once rounded to bf16");
  with(a, {2, 16}, 3e38f);
  expect_refused(kList, q + ": lora_A up to 3e+38");
  with(a, {2, 16}, 1e20f);
  with(b, {16, 2}, 1e20f);
  expect_refused(kList, q + ": lora_A up to 1e+20, lora_B up to 1e+20");
  with(a, {2, 16}, 1);
  with(b, {16, 2}, 1e30f);
  loaded();
  expect_refused(R"("peft_type":"LORA","r":2,"lora_alpha":1e9,"target_modules":["q_proj"])", "scaling 5e+08");
  with(b, {16, 2}, 1);
  with(bias, {16}, 3e38f);
  expect_refused(kList + R"(,"lora_bias":true)", "bias up to 3e+38");
  bag_.erase(bias);

  const std::string norm = "base_model.model.model.norm.weight",
                    embedding = "base_model.model.model.embed_tokens.weight";
  with(norm, {16}, 3e38f);
  expect_refused(kList, "'" + norm + "' has values up to 3e+38, which overflow bf16");
  bag_.erase(norm);
  with(embedding, {40, 16}, 1e19f);
  expect_refused(kList, "'" + embedding + "' has values up to 1e+19, which overflow f32 when a norm");
  bag_.erase(embedding);
  const std::string rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
  with(rows, {1, 16}, 1e19f);
  expect_refused(kList + R"(,"trainable_token_indices":[3])", "'" + rows + "' has values up to 1e+19");
  bag_.erase(rows);
  const std::string ea = "base_model.model.model.embed_tokens.lora_embedding_A",
                    eb = "base_model.model.model.embed_tokens.lora_embedding_B";
  with(ea, {2, 40}, 1e20f);
  with(eb, {16, 2}, 1e20f);
  expect_refused(R"("peft_type":"LORA","r":2,"lora_alpha":6,"target_modules":["q_proj","embed_tokens"])",
                 "module 'model.embed_tokens'");
}

// What is refused for its names takes no memory but its file's; what is ignored takes none at all.
TEST_F(LoadAdapter, IgnoredTensorsAreNotKept) {
  for (int i = 0; i < 100; ++i) bag_.add(fmt::format("other.{}", i), {1000});
  expect_refused(kList, "match nothing in this");
  options_.ignore_unknown_tensors = true;
  EXPECT_EQ(loaded()->file->tensors().size(), 4u);
}

TEST_F(LoadAdapter, RefusesFilesBeyondTheLimit) {
  options_.max_bytes = 100;
  const auto adapter = load();
  EXPECT_EQ(adapter.status().code(), StatusCode::kResourceExhausted);
}

TEST_F(LoadAdapter, ResizedVocabulariesNeedBothEndsWhole) {
  const std::string embedding = "base_model.model.model.embed_tokens", head = "base_model.model.lm_head";
  for (const std::string& name : {embedding + ".weight", embedding + ".base_layer.weight", head + ".weight"}) {
    bag_.add(name, {41, 16});
    expect_refused(kList, fmt::format("resized from 40 to 41 tokens, and the file has no whole {}",
                                      name.starts_with(head) ? "model.embed_tokens" : "lm_head"));
    bag_.erase(name);
  }
  bag_.add(embedding + ".weight", {41, 16}).add(head + ".weight", {42, 16});
  expect_refused(kList, "rows for 42 and for 41 tokens: both ends need one vocabulary");
  bag_.add(head + ".weight", {40, 16});
  expect_refused(kList, "both ends need one vocabulary");
  bag_.add(embedding + ".weight", {65617, 16}).add(head + ".weight", {65617, 16});
  expect_refused(kList, "an adapter may have at most 65616");
  for (const int64_t size : {41, 33}) {
    bag_.add(embedding + ".weight", {size, 16}).add(head + ".weight", {size, 16});
    const auto adapter = loaded();
    EXPECT_THAT(adapter->warnings, IsEmpty());
    EXPECT_EQ(adapter->own_vocab_size, size);
    EXPECT_EQ(read_own_vocab_size(dir_.path(), config_).value(), size);
    EXPECT_TRUE(adapter->replaced.embedding.has_shape({size, 16}) && adapter->replaced.lm_head.has_shape({size, 16}));
  }
  bag_.add(embedding + ".weight", {40, 16}).add(head + ".weight", {40, 16});
  EXPECT_EQ(loaded()->own_vocab_size, std::nullopt);
  EXPECT_EQ(read_own_vocab_size(dir_.path(), config_).value(), std::nullopt);
}

TEST_F(LoadAdapter, SaysWhereAnAdapterIsInstead) {
  const auto missing = load_adapter("a", dir_.file("nope"), config_, nullptr, options_);
  EXPECT_THAT(missing.status().message(), HasSubstr("no such directory"));
  EXPECT_THAT(load_adapter("a", dir_.path(), config_, nullptr, options_).status().message(),
              HasSubstr("is this a PEFT adapter directory?"));
  std::filesystem::create_directory(dir_.file("other"));
  std::filesystem::create_directory(dir_.file("foo"));
  dir_.write("foo/adapter_model.safetensors", "x");
  const auto named = load_adapter("a", dir_.path(), config_, nullptr, options_);
  EXPECT_EQ(named.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(named.status().message(), HasSubstr("but in " + dir_.file("foo") + ": give that directory"));
}

// Both names of the one matrix, or one of them; what was beside it is nobody's.
TEST_F(LoadAdapter, TiedSavedEndsAreOneMatrix) {
  config_.tie_word_embeddings = true;
  const std::string fields = kList + R"(,"ensure_weight_tying":true,"modules_to_save":)";
  const std::string embedding = "base_model.model.model.embed_tokens", head = "base_model.model.lm_head";
  for (const char* named : {R"(["embed_tokens"])", R"(["lm_head"])", R"(["embed_tokens","lm_head"])"})
    for (const int64_t size : {40, 43})
      for (const std::string& written : {embedding, head}) {
        bag_.add(written + ".modules_to_save.weight", {size, 16});
        bag_.add(written + ".original_module.weight", {size, 16});
        const auto adapter = loaded(fields + named);
        EXPECT_THAT(adapter->warnings, IsEmpty());
        EXPECT_TRUE(adapter->replaced.embedding.has_shape({size, 16}));
        EXPECT_EQ(adapter->replaced.embedding.raw(), adapter->replaced.lm_head.raw());
        EXPECT_EQ(adapter->replaced.embedding.raw(), adapter->file->find(written + ".modules_to_save.weight")->raw());
        bag_.erase(written + ".modules_to_save.weight");
        bag_.erase(written + ".original_module.weight");
      }
  bag_.set(embedding + ".weight", {40, 16}, std::vector<float>(640, 0.25f));
  bag_.set(head + ".weight", {40, 16}, std::vector<float>(640, 0.5f));
  expect_refused(fields + R"(["embed_tokens"])", "ensure_weight_tying is true, and the saved values");
}

TEST_F(LoadAdapter, ActivatedOnesAreWhatPeftTakes) {
  const std::string activated = kList + R"(,"alora_invocation_tokens":[5,6])";
  EXPECT_THAT(loaded(activated)->config.alora_invocation_tokens, ElementsAre(5, 6));
  EXPECT_TRUE(loaded(activated)->is_activated());
  for (const char* nothing : {"[]", "null"})
    EXPECT_FALSE(loaded(kList + R"(,"alora_invocation_tokens":)" + nothing)->is_activated());
  EXPECT_THAT(loaded(kList + R"(,"alora_invocation_tokens":[40])")->warnings,
              ElementsAre(HasSubstr("no prompt activates the adapter")));
  expect_refused(activated + R"(,"use_dora":true)", "exclude each other");
  expect_refused(activated + R"(,"init_lora_weights":"pissa")", "path_initial_model_for_weight_conversion");
  expect_refused(kList + R"(,"alora_invocation_tokens":[-1])", "alora_invocation_tokens");
  expect_refused(kList + R"(,"invocation_string":"<|go|>")", "\"alora_invocation_tokens\"");
  bag_.add("base_model.model.model.embed_tokens.lora_embedding_A", {2, 40})
      .add("base_model.model.model.embed_tokens.lora_embedding_B", {16, 2});
  expect_refused(R"("peft_type":"LORA","r":2,"target_modules":["q_proj","embed_tokens"],"alora_invocation_tokens":[5])",
                 "has linear layers only");
}

// A tensor may be there twice, as PEFT's save_embedding_layers leaves it, but not with two meanings.
TEST_F(LoadAdapter, OneMatrixUnderTwoNamesMustBeOneMatrix) {
  const std::string saved = kList + R"(,"modules_to_save":["model.norm"])", norm = "base_model.model.model.norm";
  bag_.set(norm + ".weight", {16}, std::vector<float>(16, 1.5f));
  bag_.set(norm + ".modules_to_save.weight", {16}, std::vector<float>(16, 1.5f), DType::kBF16);
  EXPECT_TRUE(loaded(saved)->replaced.final_norm.defined());
  bag_.set(norm + ".modules_to_save.weight", {16}, std::vector<float>(16, 1.25f));
  expect_refused(saved, "stand for the same weight and differ");
}

TEST_F(LoadAdapter, RefusesAMagnitudeOfAnEmbeddingWithoutADelta) {
  bag_.add("base_model.model.model.embed_tokens.lora_magnitude_vector", {16});
  expect_refused(kList, "'base_model.model.model.embed_tokens.lora_magnitude_vector' stands alone");
}

TEST_F(LoadAdapter, NamesTensorsOfOtherPartsOfAMultimodalModel) {
  bag_.add("base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight", {2, 8});
  EXPECT_THAT(loaded()->warnings, ElementsAre(HasSubstr("adapt other parts of a multimodal model")));
}

// The patterns of adapter_config.json are made for the names that the adapted model had.
TEST_F(LoadAdapter, PatternsSeeTheNamesInTheFile) {
  for (const std::string decoder : {"model.language_model.", "language_model.model.", ""}) {
    bag_ = TensorBag();
    for (int layer = 0; layer < 2; ++layer) {
      const std::string path = fmt::format("base_model.model.{}layers.{}.self_attn.q_proj", decoder, layer);
      bag_.add(path + ".lora_A.weight", {2, 16}).add(path + ".lora_B.weight", {16, 2});
    }
    const auto adapter =
        loaded(kList + fmt::format(R"(,"alpha_pattern":{{"{}layers.1.self_attn.q_proj":10}})", decoder));
    EXPECT_THAT(adapter->warnings, IsEmpty());
    EXPECT_EQ(delta(*adapter, 0, Proj::kQ).scaling, 3.0);
    EXPECT_EQ(delta(*adapter, 1, Proj::kQ).scaling, 5.0);
  }
}

TEST_F(LoadAdapter, SaysHowToConvertOtherTrainersFiles) {
  for (const char* file : {"adapters.safetensors", "lora.safetensors"}) {
    const TempDir other;
    bag_.write(other.file(file));
    EXPECT_THAT(load_adapter("a", other.path(), config_, nullptr).status().message(),
                HasSubstr("lorikeet adapter convert"));
  }
}

TEST_F(LoadAdapter, ModulesToSave) {
  bag_.add("base_model.model.model.norm.weight", {16});
  const std::string saved = kList + R"(,"modules_to_save":["model.norm"])";
  EXPECT_TRUE(loaded(saved)->replaced.final_norm.defined());
  EXPECT_THAT(loaded()->warnings, ElementsAre(HasSubstr("modules_to_save does not name it")));
  bag_.add("base_model.model.model.norm.weight", {17});
  expect_refused(saved, "this base needs [16]");
  bag_.erase("base_model.model.model.norm.weight");
  expect_refused(saved, "covers 'model.norm.weight'");
  bag_.add("base_model.model.model.layers.0.self_attn.q_proj.weight", {16, 16});
  expect_refused(kList, "both a full replacement");
}

TEST_F(LoadAdapter, TrainedTokens) {
  const std::string rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
  bag_.add(rows, {2, 16});
  const auto adapter = loaded(kList + R"(,"trainable_token_indices":[7,3])");
  EXPECT_THAT(adapter->trained_token_ids, ElementsAre(7, 3));
  EXPECT_TRUE(adapter->trained_token_rows.has_shape({2, 16}));
  expect_refused(kList, "does not say for which tokens");
  expect_refused(kList + R"(,"trainable_token_indices":[7])", "this base needs [1, 16]");
  expect_refused(kList + R"(,"trainable_token_indices":[7,40])", "has id 40");
  expect_refused(kList + R"(,"trainable_token_indices":[7,7])", "repeats an id");
  expect_refused(kList + R"(,"trainable_token_indices":[7,-1])", "-1");
  expect_refused(kList + R"(,"trainable_token_indices":{"other":[1,2]})", "only embed_tokens and lm_head");
  bag_.erase(rows);
  expect_refused(kList + R"(,"trainable_token_indices":[7,3])", "their rows are not in");
  // PEFT replaces the rows below the head's delta, we above it.
  bag_.add(rows, {2, 16});
  bag_.add("base_model.model.lm_head.lora_A.weight", {2, 16});
  bag_.add("base_model.model.lm_head.lora_B.weight", {40, 2});
  const std::string both =
      R"("peft_type":"LORA","r":2,"lora_alpha":6,"target_modules":["q_proj","lm_head"],"trainable_token_indices":[7,3])";
  config_.tie_word_embeddings = true;
  expect_refused(both, "beside an adapter of lm_head");
  config_.tie_word_embeddings = false;
  EXPECT_THAT(loaded(both)->trained_token_ids, ElementsAre(7, 3));
}

TEST_F(LoadAdapter, LoraBias) {
  bag_.add(kQ + ".lora_B.bias", {16});
  EXPECT_TRUE(delta(*loaded(kList + R"(,"lora_bias":true)"), 0, Proj::kQ).bias.has_shape({16}));
  bag_.add(kQ + ".lora_B.bias", {15});
  expect_refused(kList, "this base needs [16]");
}

TEST_F(LoadAdapter, DoraNeedsTheBaseAndSensibleNorms) {
  for (int layer = 0; layer < 2; ++layer) {
    bag_.add(fmt::format("base_model.model.model.layers.{}.self_attn.q_proj.lora_magnitude_vector", layer), {16});
  }
  expect_refused(kList, "use_dora false");
  expect_refused(kList + R"(,"use_dora":true)", "needs the base model's weights");
}

}  // namespace
}  // namespace lk
