// SPDX-License-Identifier: Apache-2.0
// Names in adapter files: which module of the model a tensor of adapter_model.safetensors belongs to, and the part it
// plays there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/safetensors.h"
#include "lk/io/weight_names.h"

namespace lk {

enum class Part {
  kA,
  kB,
  kBias,       // lora_A.weight, lora_B.weight, lora_B.bias
  kMagnitude,  // lora_magnitude_vector
  kEmbeddingA,
  kEmbeddingB,  // lora_embedding_A, lora_embedding_B
  kTokenRows,   // token_adapter.trainable_tokens_delta
  kBaseWeight,  // base_layer.weight, original_module.weight: the base's own weight below what the adapter adds
  kBaseBias,
  kWeight,
  kPlainBias,  // weight, bias of the module itself
};

// A module as adapter files know it: one of the model's, or neighbouring projections fused into one (qkv_proj and
// gate_up_proj).
struct FileModule {
  ModuleId first;
  int32_t num_fused = 1;
  auto operator<=>(const FileModule&) const = default;
};
std::string module_path(FileModule module);

struct TensorRole {
  FileModule module;
  Part part = Part::kWeight;
  // The module as the adapter's model called it, which is what the patterns of adapter_config.json are made for:
  // "model.language_model.layers.0.self_attn.q_proj" in a multimodal one.
  std::string path;
};

// Accepts names with or without "base_model.model.", with an embedded adapter name ("lora_A.default.weight") and with
// the prefixes of torch.compile and FSDP. Nullopt when the tensor plays no part in a model of this config.
std::optional<TensorRole> parse_tensor_name(std::string_view name, const ModelConfig& config);

// The number of tokens to which these tensors of an adapter give rows, where that is not the base's: it was trained on
// a resized vocabulary. kUnsupported when the two ends of the model have different ones, or one is out of all
// proportion.
Result<std::optional<int64_t>> own_vocab_size_of(std::span<const TensorEntry> tensors, const ModelConfig& base);

// Every module LoRA can target in this model: the embedding, all projections, lm_head.
std::vector<ModuleId> lora_modules(const ModelConfig& config);

}  // namespace lk
