// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weight_names.h"

#include <charconv>

namespace lk {
namespace {

constexpr std::string_view kLayers = "model.layers.";

constexpr std::string_view name_of(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kQ:
      return "self_attn.q_proj";
    case ModuleKind::kK:
      return "self_attn.k_proj";
    case ModuleKind::kV:
      return "self_attn.v_proj";
    case ModuleKind::kO:
      return "self_attn.o_proj";
    case ModuleKind::kGate:
      return "mlp.gate_proj";
    case ModuleKind::kUp:
      return "mlp.up_proj";
    case ModuleKind::kDown:
      return "mlp.down_proj";
    case ModuleKind::kInputNorm:
      return "input_layernorm";
    case ModuleKind::kPostNorm:
      return "post_attention_layernorm";
    case ModuleKind::kQNorm:
      return "self_attn.q_norm";
    case ModuleKind::kKNorm:
      return "self_attn.k_norm";
    case ModuleKind::kEmbedding:
      return "model.embed_tokens";
    case ModuleKind::kFinalNorm:
      return "model.norm";
    case ModuleKind::kLmHead:
      return "lm_head";
  }
  return "?";
}

bool has_bias(Proj proj, const ModelConfig& config) {
  switch (proj) {
    case Proj::kQ:
    case Proj::kK:
    case Proj::kV:
      return config.qkv_bias;
    case Proj::kO:
      return config.o_bias;
    case Proj::kGate:
    case Proj::kUp:
    case Proj::kDown:
      return config.mlp_bias;
  }
  return false;
}

}  // namespace

const char* hf_name(Proj proj) { return name_of(static_cast<ModuleKind>(proj)).data(); }

int64_t in_dim(Proj proj, const ModelShape& shape) {
  switch (proj) {
    case Proj::kO:
      return shape.q_dim();
    case Proj::kDown:
      return shape.intermediate_dim;
    default:
      return shape.hidden_dim;
  }
}

int64_t out_dim(Proj proj, const ModelShape& shape) {
  switch (proj) {
    case Proj::kQ:
      return shape.q_dim();
    case Proj::kK:
    case Proj::kV:
      return shape.kv_dim();
    case Proj::kGate:
    case Proj::kUp:
      return shape.intermediate_dim;
    case Proj::kO:
    case Proj::kDown:
      return shape.hidden_dim;
  }
  return 0;
}

std::string module_path(ModuleId module) {
  if (module.layer < 0) return std::string(name_of(module.kind));
  return fmt::format("{}{}.{}", kLayers, module.layer, name_of(module.kind));
}

std::string short_name(ModuleId module) {
  const std::string_view name = name_of(module.kind);
  return std::string(name.substr(name.rfind('.') + 1));
}

std::string weight_name(WeightId weight) { return module_path(weight.module) + (weight.bias ? ".bias" : ".weight"); }

std::string text_model_path(std::string path) {
  const auto strip = [&](size_t at, std::string_view segment) {
    if (path.compare(at, segment.size(), segment) != 0) return false;
    path.erase(at, segment.size());
    return true;
  };
  constexpr std::string_view kRoot = "model.";
  for (const std::string_view segment : {"language_model.", "text_model."}) {
    const size_t at = path.starts_with(kRoot) ? kRoot.size() : 0;
    if (strip(at, segment)) {
      if (at > 0) strip(0, kRoot);  // "model.language_model.": what follows is the decoder,
      if (!path.starts_with(kRoot) && path != "lm_head" && !path.starts_with("lm_head."))
        path.insert(0, kRoot);  // or the causal model around it
      return path;
    }
  }
  for (const std::string_view name : {"layers.", "embed_tokens", "norm"})
    if (path == name || (path.starts_with(name) && (name.ends_with('.') || path[name.size()] == '.')))
      return path.insert(0, kRoot);
  return path;
}

std::string_view other_modality(std::string_view name) {
  for (const std::string_view part : {"vision", "visual", "image", "audio", "projector", "connector", "video"})
    if (const size_t at = name.find(part); at != std::string_view::npos) return name.substr(0, name.find('.', at));
  return {};
}

std::optional<ModuleId> find_module(std::string_view path, const ModelConfig& config) {
  if (!path.starts_with(kLayers)) {
    for (const ModuleId module : {kEmbedding, kFinalNorm, kLmHead})
      if (path == name_of(module.kind)) return module;
    return std::nullopt;
  }
  path.remove_prefix(kLayers.size());
  int32_t layer = 0;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), layer);
  if (error != std::errc() || layer < 0 || layer >= config.num_layers) return std::nullopt;
  path.remove_prefix(static_cast<size_t>(end - path.data()));
  if (!path.starts_with('.')) return std::nullopt;
  path.remove_prefix(1);
  for (ModuleKind kind = ModuleKind::kQ; kind < ModuleKind::kEmbedding; kind = ModuleKind(static_cast<int>(kind) + 1))
    if (path == name_of(kind)) return ModuleId{layer, kind};
  return std::nullopt;
}

std::optional<std::vector<int64_t>> weight_shape(WeightId weight, const ModelConfig& config) {
  using Shape = std::vector<int64_t>;
  if (const std::optional<Proj> proj = weight.module.proj()) {
    const int64_t out = out_dim(*proj, config);
    if (!weight.bias) return Shape{out, in_dim(*proj, config)};
    return has_bias(*proj, config) ? std::optional(Shape{out}) : std::nullopt;
  }
  if (weight.bias) return std::nullopt;
  switch (weight.module.kind) {
    case ModuleKind::kLmHead:
      if (!config.has_lm_head) return std::nullopt;
      [[fallthrough]];
    case ModuleKind::kEmbedding:
      return Shape{config.vocab_size, config.hidden_dim};
    case ModuleKind::kQNorm:
    case ModuleKind::kKNorm:
      return config.qk_norm ? std::optional(Shape{config.head_dim}) : std::nullopt;
    default:
      return Shape{config.hidden_dim};
  }
}

std::optional<WeightId> find_weight(std::string_view name, const ModelConfig& config) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view end = name.substr(dot + 1);
  if (end != "weight" && end != "bias") return std::nullopt;
  const std::optional<ModuleId> module = find_module(text_model_path(std::string(name.substr(0, dot))), config);
  if (!module) return std::nullopt;
  const WeightId weight{*module, end == "bias"};
  return weight_shape(weight, config) ? std::optional(weight) : std::nullopt;
}

std::vector<WeightId> model_weights(const ModelConfig& config) {
  constexpr ModuleKind kInOrder[] = {ModuleKind::kInputNorm, ModuleKind::kQ,        ModuleKind::kK,
                                     ModuleKind::kV,         ModuleKind::kO,        ModuleKind::kQNorm,
                                     ModuleKind::kKNorm,     ModuleKind::kPostNorm, ModuleKind::kGate,
                                     ModuleKind::kUp,        ModuleKind::kDown};
  std::vector<WeightId> weights = {{kEmbedding}};
  for (int32_t layer = 0; layer < config.num_layers; ++layer)
    for (const ModuleKind kind : kInOrder)
      for (const bool bias : {false, true})
        if (const WeightId weight{{layer, kind}, bias}; weight_shape(weight, config)) weights.push_back(weight);
  weights.push_back({kFinalNorm});
  if (config.has_lm_head && !config.tie_word_embeddings) weights.push_back({kLmHead});
  return weights;
}

}  // namespace lk
