// SPDX-License-Identifier: Apache-2.0
#include "lk/io/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<ModelConfig> parse(const std::string& fields, const std::string& architecture = "Llama") {
  return parse_model_config(
      fmt::format(R"({{"architectures":["{}ForCausalLM"],"hidden_size":64,"num_attention_heads":4,)"
                  R"("num_hidden_layers":4,"intermediate_size":96,"vocab_size":100{}{}}})",
                  architecture, fields.empty() ? "" : ",", fields),
      "config.json");
}
ModelConfig parsed(const std::string& fields, const std::string& architecture = "Llama") {
  auto config = parse(fields, architecture);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig();
}
void expect_refused(const std::string& fields, const std::string& part, const std::string& architecture = "Llama") {
  const auto config = parse(fields, architecture);
  ASSERT_FALSE(config.ok()) << fields;
  EXPECT_THAT(config.status().message(), HasSubstr(part));
  EXPECT_THAT(config.status().message(), HasSubstr("config.json"));
}

TEST(ModelConfig, LlamaDefaultsAreThoseOfTransformers) {
  const ModelConfig config = parsed("");
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.max_positions, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(config.tie_word_embeddings || config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm);
  EXPECT_THAT(config.layer_window, ElementsAre(0, 0, 0, 0));
}

TEST(ModelConfig, LlamaBiases) {
  const ModelConfig config = parsed(R"("attention_bias":true,"mlp_bias":true,"head_dim":32,"num_key_value_heads":2)");
  EXPECT_TRUE(config.qkv_bias && config.o_bias && config.mlp_bias);
  EXPECT_EQ(config.q_dim(), 128);
  EXPECT_EQ(config.kv_dim(), 64);
}

TEST(ModelConfig, MistralWindow) {
  EXPECT_THAT(parsed(R"("num_key_value_heads":2)", "Mistral").layer_window, ElementsAre(4096, 4096, 4096, 4096));
  EXPECT_THAT(parsed(R"("num_key_value_heads":2,"sliding_window":null)", "Mistral").layer_window,
              ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(parsed(R"("num_key_value_heads":2,"sliding_window":17)", "Mistral").layer_window,
              ElementsAre(17, 17, 17, 17));
}

TEST(ModelConfig, QwenWindowsPerLayer) {
  const std::string heads = R"("num_key_value_heads":2,)";
  EXPECT_THAT(parsed(heads + R"("sliding_window":8)", "Qwen2").layer_window, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(
      parsed(heads + R"("use_sliding_window":true,"sliding_window":8,"max_window_layers":3)", "Qwen2").layer_window,
      ElementsAre(0, 0, 0, 8));
  EXPECT_THAT(
      parsed(
          heads +
              R"("use_sliding_window":true,"sliding_window":8,"layer_types":["sliding_attention","full_attention","full_attention","full_attention"])",
          "Qwen3")
          .layer_window,
      ElementsAre(8, 0, 0, 0));
  expect_refused(heads + R"("layer_types":["sliding_attention","full_attention","full_attention","full_attention"])",
                 "use_sliding_window", "Qwen3");
  expect_refused(heads + R"("layer_types":["full_attention"])", "1 entries for 4 layers", "Qwen3");
  expect_refused(heads + R"("layer_types":["full_attention","linear_attention","full_attention","full_attention"])",
                 "linear_attention", "Qwen3");
}

TEST(ModelConfig, QwenParts) {
  const ModelConfig qwen2 = parsed(R"("num_key_value_heads":2)", "Qwen2");
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias || qwen2.qk_norm);
  EXPECT_FALSE(qwen2.bos_token_id.has_value());
  EXPECT_TRUE(qwen2.eos_token_ids.empty());
  const ModelConfig qwen3 = parsed(R"("num_key_value_heads":2)", "Qwen3");
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);
}

TEST(ModelConfig, RopeInOldAndNewStyle) {
  const char* llama3 =
      R"("factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":512)";
  for (const std::string& fields :
       {fmt::format(R"("rope_theta":500000.0,"rope_scaling":{{"rope_type":"llama3",{}}})", llama3),
        fmt::format(R"("rope_parameters":{{"rope_type":"llama3","rope_theta":500000.0,{}}})", llama3)}) {
    const RopeConfig rope = parsed(fields).rope;
    EXPECT_EQ(rope.type, RopeType::kLlama3);
    EXPECT_EQ(rope.theta, 500000.0);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.original_max_positions, 512);
  }
  EXPECT_EQ(parsed(R"("rope_scaling":{"type":"linear","factor":2})").rope.type, RopeType::kLinear);
  EXPECT_EQ(parsed(R"("rope_scaling":{"type":"dynamic","factor":2})").rope.type, RopeType::kDynamic);
  EXPECT_EQ(parsed(R"("rope_scaling":null,"rope_parameters":{"rope_type":"default","rope_theta":7})").rope.theta, 7.0);
  EXPECT_EQ(parsed(R"("rope_scaling":{})").rope.type, RopeType::kDefault);
}

TEST(ModelConfig, Yarn) {
  const RopeConfig rope =
      parsed(
          R"("max_position_embeddings":4096,"rope_scaling":{"rope_type":"yarn","factor":4,"beta_fast":16,"mscale":0.7,)"
          R"("mscale_all_dim":0.9,"truncate":false,"attention_factor":1.5,"original_max_position_embeddings":1024})")
          .rope;
  EXPECT_EQ(rope.beta_fast, 16.0);
  EXPECT_EQ(rope.beta_slow, 1.0);
  EXPECT_EQ(rope.mscale, 0.7);
  EXPECT_EQ(rope.mscale_all_dim, 0.9);
  EXPECT_EQ(rope.attention_factor, 1.5);
  EXPECT_FALSE(rope.truncate);
  EXPECT_EQ(rope.original_max_positions, 1024);
  EXPECT_EQ(
      parsed(
          R"("max_position_embeddings":4096,"rope_scaling":{"rope_type":"yarn","original_max_position_embeddings":1024})")
          .rope.factor,
      4.0);
}

TEST(ModelConfig, RefusesRopeItDoesNotKnow) {
  expect_refused(R"("rope_scaling":{"rope_type":"new","factor":2})", "rope type new");
  expect_refused(R"("rope_scaling":{"rope_type":"longrope","factor":2})", "\"short_factor\" is missing");
  expect_refused(R"("rope_scaling":{"rope_type":"linear"})", "\"factor\" is missing");
  expect_refused(R"("rope_scaling":{"rope_type":"llama3","factor":8})", "low_freq_factor");
  expect_refused(R"("partial_rotary_factor":0.5)", "partial_rotary_factor 0.5");
  expect_refused(R"("rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5})",
                 "partial_rotary_factor 0.5");
  expect_refused(R"("rope_parameters":{"full_attention":{"rope_type":"default"}})", "per layer type");
  expect_refused(R"("rope_scaling":3)", "must be an object");
}

TEST(ModelConfig, TheContextIsWhatTheScalingIsMadeFor) {
  const auto limit = [](const std::string& rope) {
    return parsed(R"("max_position_embeddings":100)" + (rope.empty() ? "" : ",\"rope_scaling\":" + rope))
        .context_limit();
  };
  EXPECT_EQ(limit(""), 100);
  EXPECT_EQ(limit(R"({"type":"linear","factor":4})"), 400);
  EXPECT_EQ(limit(R"({"type":"dynamic","factor":2.5})"), 250);
  EXPECT_EQ(limit(R"({"type":"yarn","factor":4})"), 400);
  EXPECT_EQ(limit(R"({"type":"yarn","factor":4,"original_max_position_embeddings":50})"), 200);
  EXPECT_EQ(limit(R"({"type":"yarn","factor":4,"original_max_position_embeddings":10})"), 100);
  EXPECT_EQ(limit(R"({"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,
                      "original_max_position_embeddings":50})"),
            100);
}

TEST(ModelConfig, LongropeChoosesItsFrequenciesByTheLength) {
  const std::string factors = R"("short_factor":[1,1,1,1,1,1,1,1],"long_factor":[2,2,2,2,2,2,2,2])";
  const ModelConfig config = parsed(R"("max_position_embeddings":100,"rope_scaling":{"type":"su",)" + factors +
                                    R"(,"original_max_position_embeddings":20})");
  EXPECT_EQ(config.rope.type, RopeType::kLongrope);
  EXPECT_EQ(config.rope.factor, 5);
  EXPECT_EQ(config.rope_length(20), 0);
  EXPECT_EQ(config.rope_length(21), config.rope_length(100));
  EXPECT_GT(config.rope_length(21), 20);
  expect_refused(R"("rope_scaling":{"type":"longrope","short_factor":[1],"long_factor":[1]})", "half of head_dim is 8");
}

TEST(ModelConfig, ReadsTheTextModelOfAMultimodalOne) {
  const auto config = parse_model_config(
      R"({"architectures":["LlavaForConditionalGeneration"],"model_type":"llava","torch_dtype":"float16","tie_word_embeddings":true,
          "text_config":{"model_type":"mistral","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
                         "num_hidden_layers":1,"tie_word_embeddings":false}})",
      "config.json");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->architecture, "MistralForCausalLM");
  EXPECT_EQ(config->dtype, DType::kF16);
  EXPECT_TRUE(config->tie_word_embeddings);  // the outer model owns the head
  const auto unknown = [](const std::string& outer, const std::string& inner) {
    return parse_model_config(fmt::format(R"({{"model_type":"{}","text_config":{{"model_type":"{}"}}}})", outer, inner),
                              "config.json")
        .status()
        .message();
  };
  EXPECT_THAT(unknown("mllama", "mllama_text_model"), HasSubstr("the text model of a mllama is not supported"));
  EXPECT_THAT(unknown("llava", "gemma2"), HasSubstr("is a gemma2, which is not supported"));
}

TEST(ModelConfig, RefusesWhatItDoesNotImplementByName) {
  expect_refused(R"("is_causal":false)", "is_causal is false");
  expect_refused("", "MixtralForCausalLM", "Mixtral");
  expect_refused("", "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM", "Mixtral");
  expect_refused(R"("hidden_act":"gelu")", "hidden_act gelu");
  expect_refused(R"("quantization_config":{"quant_method":"awq","bits":4})", "quantised (awq)");
  expect_refused(R"("torch_dtype":"float64")", "dtype float64");
}

TEST(ModelConfig, Dtype) {
  EXPECT_EQ(parsed(R"("torch_dtype":"float16")").dtype, DType::kF16);
  EXPECT_EQ(parsed(R"("dtype":"float32")").dtype, DType::kF32);
  EXPECT_EQ(parsed(R"("dtype":"bfloat16")").dtype, DType::kBF16);
}

TEST(ModelConfig, ChecksExtents) {
  expect_refused(R"("hidden_size":0)", "\"hidden_size\" must be from 1 to 65536, is 0");
  expect_refused(R"("hidden_size":1e9)", "\"hidden_size\" must be from 1 to 65536, is 1000000000");
  expect_refused(R"("hidden_size":"64")", "must be an integer, is a string");
  expect_refused(R"("hidden_size":64.5)", "must be an integer");
  expect_refused(R"("num_hidden_layers":100000)", "num_hidden_layers");
  expect_refused(R"("vocab_size":99999999)", "vocab_size");
  expect_refused(R"("num_key_value_heads":3)", "not a multiple");
  expect_refused(R"("head_dim":7)", "odd");
  expect_refused(R"("hidden_size":66)", "not a multiple of num_attention_heads");
  expect_refused(R"("eos_token_id":100)", "eos_token_id");
  expect_refused(R"("rms_norm_eps":-1)", "rms_norm_eps");
}

// The attention kernels keep a query vector on the stack, in an array of kMaxHeadDim.
TEST(ModelConfig, RefusesHeadsThatTheKernelsHaveNoRoomFor) {
  EXPECT_EQ(parsed(R"("head_dim":256)").head_dim, 256);
  for (const char* head_dim : {"258", "320", "4096"})
    expect_refused(fmt::format(R"("head_dim":{})", head_dim), fmt::format("head_dim {} is not supported", head_dim));
  const auto derived = parse_model_config(
      R"({"architectures":["LlamaForCausalLM"],"hidden_size":1280,"num_attention_heads":4})", "config.json");
  ASSERT_FALSE(derived.ok());
  EXPECT_THAT(derived.status().message(), HasSubstr("head_dim 320 is not supported"));
}

TEST(ModelConfig, RefusesWhatIsNoConfig) {
  for (const char* text : {"", "[]", "{", "{}", "nul", R"({"architectures":"x"})", R"({"architectures":[1]})"}) {
    EXPECT_FALSE(parse_model_config(text, "c").ok()) << text;
  }
  EXPECT_TRUE(parse_model_config(R"({"model_type":"llama"})", "c").ok());
  EXPECT_EQ(load_model_config("/nonexistent").status().code(), StatusCode::kNotFound);
}

TEST(ModelConfig, EosLists) {
  EXPECT_THAT(parsed(R"("eos_token_id":[3,4],"bos_token_id":null)").eos_token_ids, ElementsAre(3, 4));
  EXPECT_TRUE(parsed(R"("eos_token_id":null)").eos_token_ids.empty());
}

}  // namespace
}  // namespace lk
