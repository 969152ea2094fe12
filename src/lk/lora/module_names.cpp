// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/module_names.h"

#include <charconv>
#include <utility>

namespace lk {
namespace {

void erase_all(std::string& text, std::string_view part) {
  for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

bool strip_prefix(std::string& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.erase(0, prefix.size());
  return true;
}

// The path below the base model's root.
std::string normalise_module(std::string module) {
  erase_all(module, "_orig_mod.");
  erase_all(module, "_fsdp_wrapped_module.");
  erase_all(module, "_checkpoint_wrapped_module.");
  strip_prefix(module, "module.");
  if (!strip_prefix(module, "base_model.model.")) strip_prefix(module, "base_model.");
  // Trained on the bare decoder (AutoModel): no "model." level.
  if (module.starts_with("layers.") || module == "embed_tokens" || module == "norm") module.insert(0, "model.");
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
    {".modules_to_save", ".weight", Part::kWeight},
    {".modules_to_save", ".bias", Part::kPlainBias},
    {".base_layer", ".weight", Part::kBaseWeight},
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

}  // namespace

TensorRole parse_tensor_name(std::string_view name) {
  for (const Suffix& suffix : kSuffixes) {
    if (std::optional<std::string> module = match_suffix(name, suffix)) {
      return {normalise_module(std::move(*module)), suffix.part};
    }
  }
  // A variant's tensor must not pass for a plain weight: "lora_diag.weight", "lora_C.weight".
  if (name.find("lora_") != std::string_view::npos) return {std::string(name), Part::kUnknown};
  for (const auto& [end, part] : {std::pair(std::string_view(".weight"), Part::kWeight), {".bias", Part::kPlainBias}}) {
    if (name.ends_with(end)) return {normalise_module(std::string(name.substr(0, name.size() - end.size()))), part};
  }
  return {std::string(name), Part::kUnknown};
}

std::optional<ProjPlace> find_projection(std::string_view module, const ModelConfig& config) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!module.starts_with(kPrefix)) return std::nullopt;
  module.remove_prefix(kPrefix.size());
  ProjPlace place;
  const auto [end, error] = std::from_chars(module.data(), module.data() + module.size(), place.layer);
  if (error != std::errc() || place.layer < 0 || place.layer >= config.num_layers) return std::nullopt;
  module.remove_prefix(static_cast<size_t>(end - module.data()));
  if (!module.starts_with('.')) return std::nullopt;
  module.remove_prefix(1);
  if (module == "self_attn.qkv_proj") {
    place.projs = {Proj::kQ, Proj::kK, Proj::kV};
  } else if (module == "mlp.gate_up_proj") {
    place.projs = {Proj::kGate, Proj::kUp};
  } else {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      if (module == hf_name(static_cast<Proj>(proj))) place.projs = {static_cast<Proj>(proj)};
    }
  }
  if (place.projs.empty()) return std::nullopt;
  return place;
}

std::string module_path(int64_t layer, Proj proj) { return fmt::format("model.layers.{}.{}", layer, hf_name(proj)); }

std::vector<std::string> lora_modules(const ModelConfig& config) {
  std::vector<std::string> modules = {kEmbedTokens};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (int proj = 0; proj < kNumProjs; ++proj) modules.push_back(module_path(layer, static_cast<Proj>(proj)));
  }
  modules.emplace_back(kLmHead);
  return modules;
}

}  // namespace lk
