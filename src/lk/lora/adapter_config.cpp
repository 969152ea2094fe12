// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/adapter_config.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cctype>

#include "lk/base/json_fields.h"

namespace lk {
namespace {
namespace json = boost::json;

// Keys that say how an adapter was made or stored, and nothing about its result.
constexpr const char* kInformative[] = {
    "auto_mapping", "revision",     "inference_mode", "megatron_core", "qalora_group_size", "loftq_config",
    "eva_config",   "corda_config", "lora_ga_config", "peft_type",     "init_lora_weights", "fan_in_fan_out",
};

// Keys that change the result in a way not implemented, when they hold anything but null, false or
// empty.
struct Refusal {
  const char* key;
  const char* reason;
};
constexpr Refusal kRefusals[] = {
    {"layer_replication", "it changes the number of layers of the base"},
    {"target_parameters", "it adapts raw parameters (mixture-of-experts), not linear layers"},
    {"use_qalora", "QALoRA pools the input over quantisation groups"},
    {"use_bdlora", "BD-LoRA stores block-diagonal factors"},
    {"velora_config", "the VeLoRA variant is not implemented"},
    {"monteclora_config", "the MonteCLoRA variant is not implemented"},
    {"kasa_config", "KaSA truncates the base weights, so the adapter does not fit the published base"},
    {"arrow_config", "arrow routes between several adapters"},
    {"megatron_config", "Megatron parallel layers are stored in shards"},
};

bool is_empty(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    case json::kind::string:
      return value.get_string().empty();
    default:
      return false;
  }
}

void refuse_variants(JsonFields& fields) {
  for (const Refusal& refusal : kRefusals) {
    const json::value* value = fields.find(refusal.key);
    if (value != nullptr && !is_empty(*value)) {
      fields.fail(unsupported("{}: \"{}\" is not supported: {}", fields.where(), refusal.key, refusal.reason));
    }
  }
}

// peft_type TRAINABLE_TOKENS: rows of the embedding and nothing else.
void read_trainable_tokens(JsonFields& fields, AdapterConfig& config) {
  std::vector<int64_t> ids;
  fields.read_ints("token_indices", ids, 0, int64_t{1} << 40);
  std::vector<std::string> modules = {"embed_tokens"};
  if (const json::value* target = fields.find("target_modules"); target != nullptr && target->is_string())
    modules = {std::string(target->get_string())};
  else if (target != nullptr)
    fields.read_strings("target_modules", modules);
  for (const std::string& module : modules) config.trainable_token_indices[module] = ids;
  config.target_modules.kind = ModuleSelector::Kind::kList;  // of nothing
  fields.mark_known("init_weights");
}

void read_init(JsonFields& fields, AdapterConfig& config) {
  const json::value* value = fields.find("init_lora_weights");
  if (value == nullptr || value->is_bool()) return;
  if (!value->is_string()) return fields.wrong_kind("init_lora_weights", "true, false or a string", *value);
  std::string init(value->get_string());
  std::ranges::transform(init, init.begin(), [](unsigned char c) { return std::tolower(c); });
  constexpr const char* kRemedy =
      "save the adapter again with model.save_pretrained(..., "
      "path_initial_model_for_weight_conversion=<directory saved "
      "before training>)";
  if (init == "gaussian" || init == "orthogonal" || init == "eva" || init == "mica") return;
  if (init == "pissa")
    config.base_change = BaseChange::kPissa;
  else if (init == "olora")
    config.base_change = BaseChange::kOlora;
  else if (init.starts_with("pissa_niter_")) {
    fields.fail(
        unsupported("{}: init_lora_weights \"{}\" changed the base by a randomised SVD that cannot "
                    "be repeated; {}",
                    fields.where(), init, kRemedy));
  } else if (init == "corda" || init == "lora_ga") {
    fields.fail(
        unsupported("{}: init_lora_weights \"{}\" changed the base from training data that the "
                    "adapter does not hold; {}",
                    fields.where(), init, kRemedy));
  } else if (init == "loftq") {
    fields.fail(
        unsupported("{}: init_lora_weights \"loftq\" is relative to a quantised base; merge it "
                    "into that base with PEFT "
                    "and serve the merged model",
                    fields.where()));
  } else {
    fields.fail(
        unsupported("{}: init_lora_weights \"{}\" is not known; supported: true, false, gaussian, "
                    "orthogonal, eva, mica, "
                    "pissa, olora",
                    fields.where(), init));
  }
}

void read_selector(JsonFields& fields, const char* key, ModuleSelector& selector) {
  const json::value* value = fields.find(key);
  if (value == nullptr) return;
  if (value->is_string()) {
    selector.pattern = std::string(value->get_string());
    std::string lower = selector.pattern;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    selector.kind = lower == "all-linear" ? ModuleSelector::Kind::kAllLinear : ModuleSelector::Kind::kRegex;
    return;
  }
  fields.read_strings(key, selector.names);
  selector.kind = ModuleSelector::Kind::kList;
}

template <class T, class Read>
void read_pattern_map(JsonFields& fields, const char* key, std::vector<std::pair<std::string, T>>& out, Read read) {
  constexpr size_t kMaxPatterns = 16384;
  const json::value* value = fields.find(key);
  if (value == nullptr) return;
  if (!value->is_object()) return fields.wrong_kind(key, "an object", *value);
  if (value->get_object().size() > kMaxPatterns) {
    return fields.fail(invalid_argument("{}: \"{}\" has more than {} entries", fields.where(), key, kMaxPatterns));
  }
  JsonFields entries(value->get_object(), fmt::format("{}: {}", fields.where(), key));
  for (const auto& entry : value->get_object()) {
    T number{};
    read(entries, entry.key(), number);
    out.emplace_back(std::string(entry.key()), number);
    if (entry.value().is_null()) entries.wrong_kind(entry.key(), "a number", entry.value());
  }
  fields.fail(entries.status());
}

void read_token_indices(JsonFields& fields, AdapterConfig& config) {
  const json::value* value = fields.find("trainable_token_indices");
  if (value == nullptr) return;
  if (!value->is_object()) {
    std::vector<int64_t> ids;
    fields.read_ints("trainable_token_indices", ids, 0, int64_t{1} << 40);
    if (!ids.empty()) config.trainable_token_indices["embed_tokens"] = std::move(ids);
    return;
  }
  JsonFields entries(value->get_object(), fmt::format("{}: trainable_token_indices", fields.where()));
  for (const auto& entry : value->get_object()) {
    entries.read_ints(entry.key(), config.trainable_token_indices[std::string(entry.key())], 0, int64_t{1} << 40);
  }
  fields.fail(entries.status());
}

// Activated LoRA, and what PEFT does not combine it with.
void read_activation(JsonFields& fields, AdapterConfig& config) {
  std::vector<int64_t>& tokens = config.alora_invocation_tokens;
  fields.read_ints("alora_invocation_tokens", tokens, 0, int64_t{1} << 40);
  const json::value* words = fields.find("invocation_string");
  if (tokens.empty() && words != nullptr && !is_empty(*words))
    fields.fail(
        unsupported("{}: \"invocation_string\" is of an activated LoRA from before PEFT had them: write the ids of its "
                    "tokens to \"alora_invocation_tokens\"",
                    fields.where()));
  if (tokens.empty()) return;
  if (config.use_dora)
    fields.fail(invalid_argument("{}: alora_invocation_tokens and use_dora exclude each other", fields.where()));
  if (config.base_change != BaseChange::kNone)
    fields.fail(
        unsupported("{}: alora_invocation_tokens with init_lora_weights pissa or olora: before the activation the base "
                    "would be another one than this; save the adapter again with model.save_pretrained(..., "
                    "path_initial_model_for_weight_conversion=<directory saved before training>)",
                    fields.where()));
}

void check_layer_filters(JsonFields& fields, const AdapterConfig& config) {
  const bool regex = config.target_modules.kind == ModuleSelector::Kind::kRegex;
  if (regex && (!config.layers_to_transform.empty() || !config.layers_pattern.empty())) {
    fields.fail(
        invalid_argument("{}: layers_to_transform and layers_pattern need target_modules to be a list, it is a "
                         "regular expression",
                         fields.where()));
  }
  if (!config.layers_pattern.empty() && config.layers_to_transform.empty()) {
    fields.fail(invalid_argument("{}: layers_pattern needs layers_to_transform", fields.where()));
  }
  if (config.lora_bias && config.use_dora) {
    fields.fail(invalid_argument("{}: lora_bias and use_dora exclude each other", fields.where()));
  }
}

void add_warnings(JsonFields& fields, AdapterConfig& config) {
  const json::value* transposed = fields.find("fan_in_fan_out");
  if (transposed != nullptr && !is_empty(*transposed)) {
    config.warnings.push_back("fan_in_fan_out is ignored: the base has plain linear layers");
  }
  if (const json::value* runtime = fields.find("runtime_config"); runtime != nullptr) {
    config.warnings.push_back("runtime_config is ignored");
  }
  if (!config.task_type.empty() && config.task_type != "CAUSAL_LM") {
    config.warnings.push_back(fmt::format("task_type is {}, not CAUSAL_LM", config.task_type));
  }
  if (config.alpha == 0) config.warnings.push_back("lora_alpha is 0: the adapter changes nothing");
  for (const char* key : kInformative) fields.mark_known(key);
  for (const std::string& key : fields.unknown()) {
    config.warnings.push_back(fmt::format("unknown key \"{}\" is ignored", key));
  }
}

}  // namespace

Result<AdapterConfig> parse_adapter_config(std::string_view text, std::string_view where) {
  LK_ASSIGN_OR_RETURN(const json::object object, parse_json_object(text, where));
  JsonFields fields(object, std::string(where));
  std::string peft_type;
  fields.read_string("peft_type", peft_type);
  LK_RETURN_IF_ERROR(fields.status());
  if (peft_type.empty()) return invalid_argument("{}: no \"peft_type\"; is this a PEFT adapter?", where);
  if (peft_type != "LORA" && peft_type != "TRAINABLE_TOKENS")
    return unsupported("{}: peft_type {} is not supported; supported: LORA, TRAINABLE_TOKENS", where, peft_type);

  AdapterConfig config;
  refuse_variants(fields);
  read_init(fields, config);
  if (fields.find("r") != nullptr) {
    int64_t rank = 0;
    fields.read_int("r", rank, 1, 65536);
    config.rank = rank;
  }
  constexpr double kMaxAlpha = 1e9;
  fields.read_double("lora_alpha", config.alpha, -kMaxAlpha, kMaxAlpha);
  fields.read_double("lora_dropout", config.dropout, 0, 1);
  fields.read_bool("use_rslora", config.use_rslora);
  fields.read_bool("use_dora", config.use_dora);
  fields.read_bool("lora_bias", config.lora_bias);
  fields.read_bool("ensure_weight_tying", config.ensure_weight_tying);
  read_pattern_map(
      fields, "rank_pattern", config.rank_pattern,
      [](JsonFields& entries, std::string_view key, int64_t& out) { entries.read_int(key, out, 1, 65536); });
  read_pattern_map(fields, "alpha_pattern", config.alpha_pattern,
                   [](JsonFields& entries, std::string_view key, double& out) {
                     entries.read_double(key, out, -kMaxAlpha, kMaxAlpha);
                   });
  std::string bias = "none";
  fields.read_choice("bias", bias, {"none", "all", "lora_only"});
  config.trained_biases = bias != "none";
  if (peft_type == "TRAINABLE_TOKENS")
    read_trainable_tokens(fields, config);
  else
    read_selector(fields, "target_modules", config.target_modules);
  read_selector(fields, "exclude_modules", config.exclude_modules);
  if (config.exclude_modules.kind == ModuleSelector::Kind::kAllLinear) {
    config.exclude_modules.kind = ModuleSelector::Kind::kRegex;  // no shorthand here
  }
  fields.read_ints("layers_to_transform", config.layers_to_transform, 0, 1 << 20);
  const json::value* layers = fields.find("layers_pattern");
  if (layers != nullptr && layers->is_string()) {
    if (!layers->get_string().empty()) config.layers_pattern.emplace_back(layers->get_string());
  } else {
    fields.read_strings("layers_pattern", config.layers_pattern);
  }
  fields.read_strings("modules_to_save", config.modules_to_save);
  read_activation(fields, config);
  read_token_indices(fields, config);
  fields.read_string("base_model_name_or_path", config.base_model_name);
  fields.read_string("task_type", config.task_type);
  fields.read_string("peft_version", config.peft_version);
  check_layer_filters(fields, config);
  LK_RETURN_IF_ERROR(fields.status());
  add_warnings(fields, config);
  return config;
}

}  // namespace lk
