// SPDX-License-Identifier: Apache-2.0
#include "lk/io/model_config.h"

#include <algorithm>
#include <boost/json/array.hpp>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/io/text_config.h"
#include "lk/tensor/limits.h"

namespace lk {
namespace {
namespace json = boost::json;

// What differs between the supported architectures: the defaults of fields a config may leave out
// (transformers' configuration classes) and which parts the layers have.
struct Architecture {
  const char* name;
  const char* model_type;
  int64_t vocab_size, intermediate_dim, num_kv_heads, head_dim, max_positions;  // 0 = derived
  bool always_qkv_bias, has_attention_bias, has_mlp_bias, qk_norm;
  bool has_layer_types;              // Qwen: sliding window chosen per layer
  int64_t default_bos, default_eos;  // -1 = none
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", 32000, 11008, 0, 0, 2048, false, true, true, false, false, 1, 2},
    {"MistralForCausalLM", "mistral", 32000, 14336, 8, 0, 131072, false, false, false, false, false, 1, 2},
    {"Qwen2ForCausalLM", "qwen2", 151936, 22016, 32, 0, 32768, true, false, false, false, true, -1, -1},
    {"Qwen3ForCausalLM", "qwen3", 151936, 22016, 32, 128, 32768, false, true, false, true, true, -1, -1},
};

std::string supported_architectures() {
  std::string names;
  for (const Architecture& entry : kArchitectures) names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.name);
  return names;
}

struct Found {
  const Architecture* architecture = nullptr;
  bool bare = false;
};

// "LlamaModel" for "LlamaForCausalLM".
std::string bare_name(std::string_view architecture) {
  return std::string(architecture.substr(0, architecture.find("ForCausalLM"))) + "Model";
}

Result<Found> find_architecture(JsonFields& fields) {
  std::vector<std::string> names;
  std::string model_type;
  fields.read_strings("architectures", names);
  fields.read_string("model_type", model_type);
  LK_RETURN_IF_ERROR(fields.status());
  for (const Architecture& entry : kArchitectures) {
    if (names.empty() ? model_type == entry.model_type : names.front() == entry.name) return Found{&entry, false};
    if (!names.empty() && names.front() == bare_name(entry.name)) return Found{&entry, true};
  }
  if (names.empty() && model_type.empty()) {
    return invalid_argument("{}: neither \"architectures\" nor \"model_type\"; is this a model's config.json?",
                            fields.where());
  }
  return unsupported("{}: architecture {} is not supported; supported: {}", fields.where(),
                     names.empty() ? model_type : names.front(), supported_architectures());
}

// Fields that change the maths in a way the engine does not follow.
void refuse_unsupported(JsonFields& fields) {
  if (const json::value* quantization = fields.find("quantization_config")) {
    std::string method = "unknown";
    if (quantization->is_object()) {
      const json::value* name = quantization->get_object().if_contains("quant_method");
      if (name != nullptr && name->is_string()) method = std::string(name->get_string());
    }
    fields.fail(unsupported("{}: the weights are quantised ({}); use the f32, bf16 or f16 checkpoint of the model",
                            fields.where(), method));
  }
  std::string act = "silu";
  fields.read_string("hidden_act", act);
  if (act != "silu" && act != "swish") {
    fields.fail(unsupported("{}: hidden_act {} is not supported; supported: silu", fields.where(), act));
  }
  double rotary = 1.0;
  fields.read_double("partial_rotary_factor", rotary);
  if (rotary != 1.0) {
    fields.fail(unsupported("{}: partial_rotary_factor {} is not supported; supported: 1", fields.where(), rotary));
  }
  bool causal = true;
  fields.read_bool("is_causal", causal);
  if (!causal) {
    fields.fail(unsupported("{}: is_causal is false: tokens of this model see later ones, which is not supported",
                            fields.where()));
  }
}

void read_dtype(JsonFields& fields, DType& dtype) {
  std::string name;
  fields.read_string("torch_dtype", name);
  fields.read_string("dtype", name);  // the newer name wins
  if (name.starts_with("torch.")) name = name.substr(6);
  if (name.empty() || name == "auto") return;
  if (name == "bfloat16")
    dtype = DType::kBF16;
  else if (name == "float16")
    dtype = DType::kF16;
  else if (name == "float32")
    dtype = DType::kF32;
  else
    fields.fail(
        unsupported("{}: dtype {} is not supported; supported: float32, bfloat16, float16", fields.where(), name));
}

void read_rope_type(JsonFields& rope, RopeConfig& config) {
  std::string type = "default";
  rope.read_string("type", type);  // the older name
  rope.read_string("rope_type", type);
  if (type == "default")
    config.type = RopeType::kDefault;
  else if (type == "linear")
    config.type = RopeType::kLinear;
  else if (type == "dynamic")
    config.type = RopeType::kDynamic;
  else if (type == "llama3")
    config.type = RopeType::kLlama3;
  else if (type == "yarn")
    config.type = RopeType::kYarn;
  else if (type == "longrope" || type == "su")
    config.type = RopeType::kLongrope;
  else if (type == "mrope")  // by time, height and width of a picture, which are one position where there is only text
    config.type = RopeType::kDefault;
  else
    rope.fail(
        unsupported("{}: rope type {} is not supported; supported: default, linear, dynamic, llama3, yarn, longrope",
                    rope.where(), type));
}

void read_factors(JsonFields& rope, const char* key, int64_t count, std::vector<double>& out) {
  const json::array* list = rope.array(key);
  if (list == nullptr) return rope.fail(invalid_argument("{}: \"{}\" is missing", rope.where(), key));
  if (std::ssize(*list) != count)
    return rope.fail(
        invalid_argument("{}: \"{}\" has {} numbers, half of head_dim is {}", rope.where(), key, list->size(), count));
  for (const json::value& item : *list) {
    const double factor = item.is_number() ? item.to_number<double>() : 0;
    if (!(factor >= 1e-6 && factor <= 1e9))
      return rope.fail(invalid_argument("{}: \"{}\" must hold positive numbers", rope.where(), key));
    out.push_back(factor);
  }
}

// Old style: "rope_theta" and "rope_scaling" {type | rope_type, factor, ...}. New style
// (transformers 5): "rope_parameters" with both. transformers lets a non-empty "rope_scaling" win;
// so do we.
void read_rope(JsonFields& fields, int64_t max_positions, int64_t head_dim, RopeConfig& config) {
  constexpr double kMaxTheta = 1e15;
  fields.read_double("rope_theta", config.theta, 1.0, kMaxTheta);
  const json::value* parameters = fields.find("rope_parameters");
  const json::value* scaling = fields.find("rope_scaling");
  if (scaling != nullptr && !(scaling->is_object() && scaling->get_object().empty())) parameters = scaling;
  if (parameters == nullptr) return;
  if (!parameters->is_object()) return fields.wrong_kind("rope_parameters", "an object", *parameters);

  JsonFields rope(parameters->get_object(), fmt::format("{}: rope parameters", fields.where()));
  for (const auto& field : parameters->get_object()) {
    if (field.value().is_object()) {
      return fields.fail(unsupported("{}: rope parameters per layer type ({}) are not supported", fields.where(),
                                     std::string_view(field.key())));
    }
  }
  read_rope_type(rope, config);
  rope.read_double("rope_theta", config.theta, 1.0, kMaxTheta);
  double rotary = 1.0;
  rope.read_double("partial_rotary_factor", rotary);
  if (rotary != 1.0) {
    rope.fail(unsupported("{}: partial_rotary_factor {} is not supported; supported: 1", rope.where(), rotary));
  }
  const bool scaled =
      config.type == RopeType::kLlama3 || config.type == RopeType::kYarn || config.type == RopeType::kLongrope;
  int64_t original = 0;
  rope.read_int("original_max_position_embeddings", original, 1, int64_t{1} << 30);
  fields.read_int("original_max_position_embeddings", original, 1, int64_t{1} << 30);  // this one has priority
  if (scaled) config.original_max_positions = original != 0 ? original : max_positions;

  if (config.type != RopeType::kDefault) {
    const bool has_factor = rope.find("factor") != nullptr;
    rope.read_double("factor", config.factor, 1e-6, 1e6);
    if (!has_factor) {
      if (config.type == RopeType::kLongrope || (config.type == RopeType::kYarn && original != 0)) {
        config.factor = static_cast<double>(max_positions) / static_cast<double>(config.original_max_positions);
      } else {
        rope.fail(invalid_argument("{}: \"factor\" is missing", rope.where()));
      }
    }
  }
  if (config.type == RopeType::kLlama3) {
    for (const char* key : {"low_freq_factor", "high_freq_factor"}) {
      if (rope.find(key) == nullptr) rope.fail(invalid_argument("{}: \"{}\" is missing", rope.where(), key));
    }
    rope.read_double("low_freq_factor", config.low_freq_factor, 1e-6, 1e6);
    rope.read_double("high_freq_factor", config.high_freq_factor, 1e-6, 1e6);
    if (config.high_freq_factor <= config.low_freq_factor) {
      rope.fail(invalid_argument("{}: high_freq_factor must exceed low_freq_factor", rope.where()));
    }
  }
  if (config.type == RopeType::kYarn) {
    rope.read_double("beta_fast", config.beta_fast, 0.0, 1e6);
    rope.read_double("beta_slow", config.beta_slow, 0.0, 1e6);
    if (config.beta_fast == 0) config.beta_fast = 32;  // transformers: `or 32`
    if (config.beta_slow == 0) config.beta_slow = 1;
    rope.read_double("mscale", config.mscale, 0.0, 1e6);
    rope.read_double("mscale_all_dim", config.mscale_all_dim, 0.0, 1e6);
    rope.read_double("attention_factor", config.attention_factor, 0.0, 1e6);
    rope.read_bool("truncate", config.truncate);
  }
  if (config.type == RopeType::kLongrope) {
    rope.read_double("attention_factor", config.attention_factor, 0.0, 1e6);
    read_factors(rope, "short_factor", head_dim / 2, config.short_factor);
    read_factors(rope, "long_factor", head_dim / 2, config.long_factor);
  }
  fields.fail(rope.status());
}

void read_windows(JsonFields& fields, const Architecture& architecture, ModelConfig& config) {
  config.layer_window.assign(static_cast<size_t>(config.num_layers), 0);
  int64_t window = 0;
  if (!architecture.has_layer_types) {
    // Mistral: null means full attention, absent means 4096, as in transformers. Llama has no
    // window.
    if (config.architecture != "MistralForCausalLM") return;
    window = fields.contains("sliding_window") ? 0 : 4096;
    fields.read_int("sliding_window", window, 1, int64_t{1} << 40);
    config.layer_window.assign(config.layer_window.size(), window);
    return;
  }
  bool use_window = false;
  fields.read_bool("use_sliding_window", use_window);
  if (use_window) {
    window = fields.contains("sliding_window") ? 0 : 4096;
    fields.read_int("sliding_window", window, 1, int64_t{1} << 40);
  }
  int64_t first_windowed = 28;
  fields.read_int("max_window_layers", first_windowed, 0, int64_t{1} << 30);
  std::vector<std::string> types;
  fields.read_strings("layer_types", types);
  if (!fields.status().ok()) return;
  if (types.empty()) {
    for (int64_t layer = first_windowed; layer < config.num_layers; ++layer) {
      config.layer_window[static_cast<size_t>(layer)] = window;
    }
    return;
  }
  if (static_cast<int64_t>(types.size()) != config.num_layers) {
    return fields.fail(invalid_argument("{}: \"layer_types\" has {} entries for {} layers", fields.where(),
                                        types.size(), config.num_layers));
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] == "full_attention") continue;
    if (types[layer] != "sliding_attention") {
      return fields.fail(unsupported("{}: layer type {} is not supported; supported: full_attention, sliding_attention",
                                     fields.where(), types[layer]));
    }
    if (window == 0) {
      return fields.fail(
          invalid_argument("{}: layer {} has sliding_attention but use_sliding_window is off or "
                           "sliding_window is null",
                           fields.where(), layer));
    }
    config.layer_window[layer] = window;
  }
}

void read_extents(JsonFields& fields, const Architecture& architecture, ModelConfig& config) {
  constexpr int64_t kMaxDim = 65536;
  config.hidden_dim = 4096;
  config.num_layers = config.num_heads = 32;
  config.intermediate_dim = architecture.intermediate_dim;
  config.vocab_size = architecture.vocab_size;
  config.max_positions = architecture.max_positions;
  fields.read_int("hidden_size", config.hidden_dim, 1, kMaxDim);
  fields.read_int("intermediate_size", config.intermediate_dim, 1, 16 * kMaxDim);
  fields.read_int("num_hidden_layers", config.num_layers, 1, 1024);
  fields.read_int("num_attention_heads", config.num_heads, 1, 4096);
  // Absent: the class default; null: as many as query heads.
  config.num_kv_heads = fields.contains("num_key_value_heads") ? 0 : architecture.num_kv_heads;
  fields.read_int("num_key_value_heads", config.num_kv_heads, 1, 4096);
  if (config.num_kv_heads == 0) config.num_kv_heads = config.num_heads;
  config.head_dim = fields.contains("head_dim") ? 0 : architecture.head_dim;
  fields.read_int("head_dim", config.head_dim, 1, kMaxDim);
  fields.read_int("vocab_size", config.vocab_size, 1, int64_t{4} << 20);
  fields.read_int("max_position_embeddings", config.max_positions, 1, int64_t{1} << 30);
  if (!fields.status().ok()) return;
  if (config.head_dim == 0) {
    if (config.hidden_dim % config.num_heads != 0) {
      return fields.fail(
          invalid_argument("{}: hidden_size {} is not a multiple of num_attention_heads {} and there is no head_dim",
                           fields.where(), config.hidden_dim, config.num_heads));
    }
    config.head_dim = config.hidden_dim / config.num_heads;
  }
  if (config.head_dim > kMaxHeadDim) {
    fields.fail(unsupported("{}: head_dim {} is not supported; the attention kernels take heads of at most {}",
                            fields.where(), config.head_dim, kMaxHeadDim));
  }
  if (config.head_dim % 2 != 0) {
    fields.fail(invalid_argument("{}: head_dim {} is odd; rotary embeddings need an even one", fields.where(),
                                 config.head_dim));
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.fail(invalid_argument("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}",
                                 fields.where(), config.num_heads, config.num_kv_heads));
  }
  if (config.q_dim() > 16 * kMaxDim) {
    fields.fail(invalid_argument("{}: {} heads of {} are too many", fields.where(), config.num_heads, config.head_dim));
  }
}

}  // namespace

int64_t ModelConfig::context_limit() const {
  double limit = static_cast<double>(max_positions);
  if (rope.type == RopeType::kLinear || rope.type == RopeType::kDynamic) limit *= rope.factor;
  if (rope.type == RopeType::kYarn || rope.type == RopeType::kLongrope)
    limit = std::max(limit, static_cast<double>(rope.original_max_positions) * rope.factor);
  return std::max(max_positions, static_cast<int64_t>(std::min(limit, 0x1p40)));
}

ModelShape rank_share(const ModelShape& shape, int64_t ranks) {
  LK_CHECK(ranks >= 1 && shape.num_shards % ranks == 0, "{} shards on {} ranks", shape.num_shards, ranks);
  ModelShape share = shape;
  for (int64_t* extent : {&share.intermediate_dim, &share.num_heads, &share.num_kv_heads, &share.num_shards})
    *extent /= ranks;
  return share;
}

// The largest power of two of at most 8 that divides the heads and leaves each shard a multiple of 32 inputs of o and
// of down, so that neither a pair of bf16 nor a vector of them is ever cut.
ModelShape ModelConfig::shape() const {
  int64_t shards = 8;
  while (shards > 1 && (num_kv_heads % shards != 0 || num_heads % shards != 0 || q_dim() % (32 * shards) != 0 ||
                        intermediate_dim % (32 * shards) != 0))
    shards /= 2;
  return {num_layers, hidden_dim, intermediate_dim, num_heads, num_kv_heads, head_dim, vocab_size, shards};
}

int64_t ModelConfig::rope_length(int64_t sequence_length) const {
  if (rope.type == RopeType::kDynamic && sequence_length > max_positions) return sequence_length;
  if (rope.type == RopeType::kLongrope && sequence_length > rope.original_max_positions)
    return rope.original_max_positions + 1;
  return 0;
}

Result<ModelConfig> parse_model_config(std::string_view text, std::string_view where) {
  LK_ASSIGN_OR_RETURN(const json::object whole, parse_json_object(text, where));
  LK_ASSIGN_OR_RETURN(const json::object object, text_config_of(whole, where));
  JsonFields fields(object, std::string(where));
  LK_ASSIGN_OR_RETURN(const Found found, find_architecture(fields));
  const Architecture* architecture = found.architecture;
  ModelConfig config;
  config.bare = found.bare;
  config.architecture = architecture->name;
  config.model_type = architecture->model_type;
  refuse_unsupported(fields);
  read_extents(fields, *architecture, config);
  fields.read_double("rms_norm_eps", config.rms_norm_eps, 0.0, 1.0);
  read_dtype(fields, config.dtype);
  fields.read_bool("tie_word_embeddings", config.tie_word_embeddings);
  LK_RETURN_IF_ERROR(fields.status());
  read_rope(fields, config.max_positions, config.head_dim, config.rope);
  read_windows(fields, *architecture, config);

  bool attention_bias = false;
  if (architecture->has_attention_bias) fields.read_bool("attention_bias", attention_bias);
  if (architecture->has_mlp_bias) fields.read_bool("mlp_bias", config.mlp_bias);
  config.qkv_bias = architecture->always_qkv_bias || attention_bias;
  config.o_bias = attention_bias;
  config.qk_norm = architecture->qk_norm;

  int64_t bos = fields.contains("bos_token_id") ? -1 : architecture->default_bos;
  fields.read_int("bos_token_id", bos, -1, config.vocab_size - 1);
  if (bos >= 0) config.bos_token_id = bos;
  if (!fields.contains("eos_token_id") && architecture->default_eos >= 0)
    config.eos_token_ids = {architecture->default_eos};
  // -1 appears in the wild for "none".
  fields.read_ints("eos_token_id", config.eos_token_ids, -1, config.vocab_size - 1);
  std::erase(config.eos_token_ids, -1);
  LK_RETURN_IF_ERROR(fields.status());
  return config;
}

Result<ModelConfig> load_model_config(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(path, size_t{16} << 20));
  return parse_model_config(text, path);
}

}  // namespace lk
