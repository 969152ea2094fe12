// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/module_names.h"

#include <tuple>
#include <utility>

#include "lk/lora/adapter.h"

namespace lk {
namespace {

constexpr std::string_view kFusedQkv = "self_attn.qkv_proj", kFusedGateUp = "mlp.gate_up_proj";

void erase_all(std::string& text, std::string_view part) {
  for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

bool strip_prefix(std::string& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.erase(0, prefix.size());
  return true;
}

// The path below the root of the model that was adapted.
std::string strip_wrappers(std::string module) {
  erase_all(module, "_orig_mod.");
  erase_all(module, "_fsdp_wrapped_module.");
  erase_all(module, "_checkpoint_wrapped_module.");
  strip_prefix(module, "module.");
  if (!strip_prefix(module, "base_model.model.")) strip_prefix(module, "base_model.");
  return module;
}

struct Suffix {
  std::string_view marker;  // ".lora_A": may be followed by an adapter name
  std::string_view end;     // ".weight", or empty for a bare parameter
  Part part;
};
constexpr Suffix kSuffixes[] = {
    {".lora_A", ".weight", Part::kA},
    {".lora_B", ".weight", Part::kB},
    {".lora_B", ".bias", Part::kBias},
    {".lora_magnitude_vector", "", Part::kMagnitude},
    {".lora_magnitude_vector", ".weight", Part::kMagnitude},
    {".lora_embedding_A", "", Part::kEmbeddingA},
    {".lora_embedding_B", "", Part::kEmbeddingB},
    {".token_adapter.trainable_tokens_delta", "", Part::kTokenRows},
    {".trainable_tokens_delta", "", Part::kTokenRows},  // peft_type TRAINABLE_TOKENS
    {".modules_to_save", ".weight", Part::kWeight},
    {".modules_to_save", ".bias", Part::kPlainBias},
    {".token_adapter.base_layer", ".weight", Part::kBaseWeight},
    {".base_layer", ".weight", Part::kBaseWeight},
    {".base_layer", ".bias", Part::kBaseBias},
    {".original_module", ".weight", Part::kBaseWeight},
    {".original_module", ".bias", Part::kBaseBias},
};

// name = module + marker [+ "." + adapter name] + end
std::optional<std::string> match_suffix(std::string_view name, const Suffix& suffix) {
  if (!name.ends_with(suffix.end)) return std::nullopt;
  name.remove_suffix(suffix.end.size());
  if (name.ends_with(suffix.marker)) return std::string(name.substr(0, name.size() - suffix.marker.size()));
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view head = name.substr(0, dot);
  if (!head.ends_with(suffix.marker)) return std::nullopt;
  return std::string(head.substr(0, head.size() - suffix.marker.size()));
}

struct Split {
  std::string module;
  Part part;
};

std::optional<Split> split_name(std::string_view name) {
  for (const Suffix& suffix : kSuffixes) {
    if (std::optional<std::string> module = match_suffix(name, suffix)) return Split{std::move(*module), suffix.part};
  }
  // A variant's tensor must not pass for a plain weight: "lora_diag.weight", "lora_C.weight".
  if (name.find("lora_") != std::string_view::npos) return std::nullopt;
  for (const auto& [end, part] : {std::pair(std::string_view(".weight"), Part::kWeight), {".bias", Part::kPlainBias}}) {
    if (name.ends_with(end)) return Split{std::string(name.substr(0, name.size() - end.size())), part};
  }
  return std::nullopt;
}

std::optional<FileModule> find_file_module(std::string path, const ModelConfig& config) {
  for (const auto& [fused, first, number] : {std::tuple(kFusedQkv, Proj::kQ, 3), {kFusedGateUp, Proj::kGate, 2}}) {
    if (!path.ends_with(fused)) continue;
    path.replace(path.size() - fused.size(), fused.size(), hf_name(first));
    const std::optional<ModuleId> module = find_module(path, config);
    return module ? std::optional(FileModule{*module, number}) : std::nullopt;
  }
  const std::optional<ModuleId> module = find_module(path, config);
  return module ? std::optional(FileModule{*module}) : std::nullopt;
}

bool fits(const TensorRole& role, const ModelConfig& config) {
  const ModuleId module = role.module.first;
  switch (role.part) {
    case Part::kA:
    case Part::kB:
    case Part::kBias:
      return module.proj() || (module == kLmHead && config.has_lm_head);
    case Part::kMagnitude:
      return module.proj() || (module.is_vocabulary() && weight_shape({module}, config));
    case Part::kEmbeddingA:
    case Part::kEmbeddingB:
      return module == kEmbedding;
    case Part::kTokenRows:
      return module.is_vocabulary() && weight_shape({module}, config);
    case Part::kWeight:
    case Part::kBaseWeight:
      return role.module.num_fused == 1 && weight_shape({module}, config);
    case Part::kPlainBias:
    case Part::kBaseBias:
      return role.module.num_fused == 1 && weight_shape({module, true}, config);
  }
  return false;
}

}  // namespace

std::string module_path(FileModule module) {
  std::string path = module_path(module.first);
  if (module.num_fused == 1) return path;
  const std::string_view first = hf_name(*module.first.proj());
  return path.replace(path.size() - first.size(), first.size(), module.num_fused == 3 ? kFusedQkv : kFusedGateUp);
}

std::optional<TensorRole> parse_tensor_name(std::string_view name, const ModelConfig& config) {
  std::optional<Split> split = split_name(name);
  if (!split) return std::nullopt;
  std::string path = strip_wrappers(std::move(split->module));
  const std::optional<FileModule> module = find_file_module(text_model_path(path), config);
  if (!module) return std::nullopt;
  TensorRole role{*module, split->part, std::move(path)};
  return fits(role, config) ? std::optional(std::move(role)) : std::nullopt;
}

Result<std::optional<int64_t>> own_vocab_size_of(std::span<const TensorEntry> tensors, const ModelConfig& base) {
  const TensorEntry* first = nullptr;
  int64_t size = base.vocab_size;
  for (const TensorEntry& tensor : tensors) {
    const std::optional<TensorRole> role = parse_tensor_name(tensor.name, base);
    if (!role || !role->module.first.is_vocabulary() || tensor.view.num_dims() != 2) continue;
    const bool by_rows = role->part == Part::kWeight || role->part == Part::kBaseWeight || role->part == Part::kB;
    if (!by_rows && role->part != Part::kEmbeddingA) continue;
    const int64_t own = tensor.view.dim(by_rows ? 0 : 1);
    if (first != nullptr && own != size)
      return unsupported("tensors '{}' and '{}' have rows for {} and for {} tokens: both ends need one vocabulary",
                         first->name, tensor.name, size, own);
    first = &tensor;
    size = own;
  }
  if (size == base.vocab_size) return std::optional<int64_t>();
  if (size < 1 || size > max_own_vocab_size(base))
    return unsupported("tensor '{}' has rows for {} tokens, the base has {}; an adapter may have at most {}",
                       first->name, size, base.vocab_size, max_own_vocab_size(base));
  return std::optional(size);
}

std::vector<ModuleId> lora_modules(const ModelConfig& config) {
  std::vector<ModuleId> modules = {kEmbedding};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (int proj = 0; proj < kNumProjs; ++proj) modules.push_back(ModuleId::of(layer, static_cast<Proj>(proj)));
  }
  if (config.has_lm_head) modules.push_back(kLmHead);
  return modules;
}

}  // namespace lk
