// SPDX-License-Identifier: Apache-2.0
// Names of adapter tensors and base modules: splitting a tensor name of adapter_model.safetensors
// into the module and the part it plays, and mapping a module path to its place in the model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/io/model_config.h"
#include "lk/lora/adapter.h"

namespace lk {

enum class Part {
  kA,
  kB,
  kBias,       // lora_A.weight, lora_B.weight, lora_B.bias
  kMagnitude,  // lora_magnitude_vector
  kEmbeddingA,
  kEmbeddingB,  // lora_embedding_A, lora_embedding_B
  kTokenRows,   // token_adapter.trainable_tokens_delta
  kBaseWeight,  // base_layer.weight: the frozen weight below a LoRA layer
  kWeight,
  kPlainBias,  // weight, bias of the module itself
  kUnknown,
};

struct TensorRole {
  std::string module;  // "model.layers.0.self_attn.q_proj", without PEFT's and wrappers' prefixes
  Part part = Part::kUnknown;
};

// Accepts names with or without "base_model.model.", with an embedded adapter name
// ("lora_A.default.weight") and with the prefixes of torch.compile and FSDP.
TensorRole parse_tensor_name(std::string_view name);

// A linear projection, or several fused into one: qkv_proj and gate_up_proj.
struct ProjPlace {
  int64_t layer = 0;
  std::vector<Proj> projs;
};
// Nullopt when the module is no projection of this model (unknown name, layer out of range).
std::optional<ProjPlace> find_projection(std::string_view module, const ModelConfig& config);

// "model.layers.3.self_attn.q_proj"
std::string module_path(int64_t layer, Proj proj);

inline constexpr const char* kEmbedTokens = "model.embed_tokens";
inline constexpr const char* kLmHead = "lm_head";

// Every module LoRA can target in this model: the embedding, all projections, lm_head.
std::vector<std::string> lora_modules(const ModelConfig& config);

}  // namespace lk
