// SPDX-License-Identifier: Apache-2.0
#include "lk/io/text_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <string>
#include <vector>

namespace lk {
namespace {
namespace json = boost::json;

// Multimodal models whose text model is a plain decoder with plain inputs.
struct Multimodal {
  std::string_view model_type;
  bool tied;  // the class's tie_word_embeddings, where config.json does not say
};
constexpr Multimodal kMultimodal[] = {
    {"llava", false},      {"llava_next", false}, {"mistral3", true},  {"internvl", true}, {"qwen2_vl", false},
    {"qwen2_5_vl", false}, {"qwen3_vl", false},   {"idefics3", false}, {"smolvlm", false},
};

// Text models under names of their own that are one of the plain families, with the defaults in which they differ.
struct TextModelType {
  std::string_view model_type, family, defaults;
};
constexpr std::string_view kQwen2VlDefaults = R"({"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0})";
constexpr std::string_view kQwen3VlDefaults = R"({"max_position_embeddings": 128000, "rope_theta": 500000.0})";
constexpr TextModelType kTextModels[] = {
    {"llama", "llama", "{}"},
    {"mistral", "mistral", "{}"},
    {"qwen2", "qwen2", "{}"},
    {"qwen3", "qwen3", "{}"},
    {"qwen2_vl_text", "qwen2", kQwen2VlDefaults},
    {"qwen2_5_vl_text", "qwen2", kQwen2VlDefaults},
    {"qwen3_vl_text", "qwen3", kQwen3VlDefaults},
};

std::string string_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}
bool has(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && !value->is_null();
}

}  // namespace

Result<json::object> text_config_of(const json::object& config, std::string_view where) {
  const json::value* inner = config.if_contains("text_config");
  const std::string outer_type = string_of(config, "model_type");
  const auto* outer = std::ranges::find(kMultimodal, outer_type, &Multimodal::model_type);
  const bool known = outer != std::end(kMultimodal);
  if (!known && (inner == nullptr || !inner->is_object())) return config;
  if (!known) {
    std::vector<std::string_view> names;
    for (const Multimodal& entry : kMultimodal) names.push_back(entry.model_type);
    return unsupported("{}: the text model of a {} is not supported; supported: {}", where, outer_type,
                       fmt::join(names, ", "));
  }
  // The files of Qwen2-VL and Qwen2.5-VL on the hub have the text model's fields at the top.
  const bool nested = inner != nullptr && inner->is_object();
  json::object text = nested ? inner->get_object() : config;
  std::string type = string_of(text, "model_type");
  if (type.empty() || !nested) type = outer_type.starts_with("qwen") ? outer_type + "_text" : "llama";
  const auto* model = std::ranges::find(kTextModels, type, &TextModelType::model_type);
  if (model == std::end(kTextModels))
    return unsupported("{}: the text model of this {} is a {}, which is not supported", where, outer_type, type);
  text["model_type"] = json::value(model->family);
  text.erase("architectures");
  const json::value defaults = json::parse(model->defaults);
  for (const auto& field : defaults.as_object()) {
    const bool is_theta = field.key() == "rope_theta";  // which may also be among the rope parameters
    if (!text.contains(field.key()) && !(is_theta && has(text, "rope_parameters")))
      text.emplace(field.key(), field.value());
  }
  if (!nested) return text;
  for (const char* key : {"dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config", "is_causal"})
    if (!has(text, key) && has(config, key)) text[key] = config.at(key);
  // The outer model owns the head.
  if (has(config, "tie_word_embeddings"))
    text["tie_word_embeddings"] = config.at("tie_word_embeddings");
  else if (outer->tied)
    text["tie_word_embeddings"] = true;
  return text;
}

}  // namespace lk
