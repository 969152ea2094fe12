// SPDX-License-Identifier: Apache-2.0
// The weights of a decoder model as values, and their Hugging Face names. A name is parsed once, when a file is read;
// everything behind the reader passes ids.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/io/model_config.h"

namespace lk {

// The linear projections of a decoder layer, in the order of their fused groups (q,k,v | o | gate,up | down).
enum class Proj : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kNumProjs = 7;
const char* hf_name(Proj proj);  // "self_attn.q_proj" ...
int64_t in_dim(Proj proj, const ModelShape& shape);
int64_t out_dim(Proj proj, const ModelShape& shape);
inline int64_t in_dim(Proj proj, const ModelConfig& config) { return in_dim(proj, config.shape()); }
inline int64_t out_dim(Proj proj, const ModelConfig& config) { return out_dim(proj, config.shape()); }

enum class ModuleKind : uint8_t {
  kQ,  // the projections first, numbered like Proj
  kK,
  kV,
  kO,
  kGate,
  kUp,
  kDown,
  kInputNorm,
  kPostNorm,
  kQNorm,
  kKNorm,
  kEmbedding,  // from here on: of the model, not of a layer
  kFinalNorm,
  kLmHead,
};

// A module of the model that holds weights.
struct ModuleId {
  int32_t layer = -1;  // -1: not in a layer
  ModuleKind kind = ModuleKind::kEmbedding;

  static constexpr ModuleId of(ModuleKind kind) { return {-1, kind}; }
  static constexpr ModuleId of(int64_t layer, Proj proj) {
    return {static_cast<int32_t>(layer), static_cast<ModuleKind>(proj)};
  }
  std::optional<Proj> proj() const {
    return kind <= ModuleKind::kDown ? std::optional(static_cast<Proj>(kind)) : std::nullopt;
  }
  bool is_vocabulary() const { return kind == ModuleKind::kEmbedding || kind == ModuleKind::kLmHead; }
  auto operator<=>(const ModuleId&) const = default;
};
inline constexpr ModuleId kEmbedding = ModuleId::of(ModuleKind::kEmbedding);
inline constexpr ModuleId kFinalNorm = ModuleId::of(ModuleKind::kFinalNorm);
inline constexpr ModuleId kLmHead = ModuleId::of(ModuleKind::kLmHead);

struct WeightId {
  ModuleId module;
  bool bias = false;
  auto operator<=>(const WeightId&) const = default;
};

std::string module_path(ModuleId module);  // "model.layers.3.self_attn.q_proj"
std::string short_name(ModuleId module);   // "q_proj"
std::string weight_name(WeightId weight);  // "model.layers.3.self_attn.q_proj.weight"

// A module's path as a text-only causal model has it. Multimodal models keep their text model in a segment of its own
// ("language_model.model.layers", "model.language_model.layers", "model.text_model.layers"), bare decoders have no
// "model." level ("layers.3.mlp.up_proj", "embed_tokens").
std::string text_model_path(std::string path);

// The part of a multimodal model that a tensor or module of this name belongs to, when that is not the text model:
// "model.visual", "vision_tower". Empty otherwise.
std::string_view other_modality(std::string_view name);

// Nullopt when `path` is no module of this model (unknown name, layer out of range).
std::optional<ModuleId> find_module(std::string_view path, const ModelConfig& config);

// [out, in] or [dim]; nullopt when a model of this config has no such weight (a bias, a q_norm). The lm_head has a
// shape also when it is tied.
std::optional<std::vector<int64_t>> weight_shape(WeightId weight, const ModelConfig& config);

// The weight that a checkpoint's tensor of this name is, by any of the names of text_model_path().
std::optional<WeightId> find_weight(std::string_view name, const ModelConfig& config);

// Every weight a checkpoint of this config must have, in layer order. A tied or absent lm_head is not listed.
std::vector<WeightId> model_weights(const ModelConfig& config);

}  // namespace lk
