// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/adapter.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/sha256.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora/adapter_loader.h"

namespace lk {

const TensorView& ReplacedWeights::of(WeightId weight) const {
  static const TensorView kNone;
  if (weight.module.layer >= std::ssize(layers)) return kNone;
  return const_cast<ReplacedWeights*>(this)->slot(weight);
}

TensorView& ReplacedWeights::slot(WeightId weight) {
  switch (weight.module.kind) {
    case ModuleKind::kEmbedding:
      return embedding;
    case ModuleKind::kFinalNorm:
      return final_norm;
    case ModuleKind::kLmHead:
      return lm_head;
    default:
      break;
  }
  Layer& layer = layers.at(static_cast<size_t>(weight.module.layer));
  switch (weight.module.kind) {
    case ModuleKind::kInputNorm:
      return layer.input_norm;
    case ModuleKind::kPostNorm:
      return layer.post_norm;
    case ModuleKind::kQNorm:
      return layer.q_norm;
    case ModuleKind::kKNorm:
      return layer.k_norm;
    default:
      return (weight.bias ? layer.bias : layer.weight)[static_cast<size_t>(*weight.module.proj())];
  }
}

std::vector<WeightId> ReplacedWeights::ids() const {
  std::vector<WeightId> found;
  const auto add = [&](WeightId weight) {
    if (of(weight).defined()) found.push_back(weight);
  };
  add({kEmbedding});
  for (int32_t layer = 0; layer < std::ssize(layers); ++layer)
    for (int kind = 0; kind < static_cast<int>(ModuleKind::kEmbedding); ++kind) {
      const ModuleId module{layer, static_cast<ModuleKind>(kind)};
      add({module});
      if (module.proj()) add({module, true});
    }
  add({kFinalNorm});
  add({kLmHead});
  return found;
}

namespace {

Status missing_files(const std::string& directory) {
  for (const char* pickle : {"adapter_model.bin", "adapter_model.pt"}) {
    if (file_exists(join_path(directory, pickle))) {
      return unsupported(
          "{}: {} is a pickle file, which can run code, and is not read; load the adapter with "
          "PEFT and save it "
          "again with save_pretrained(..., safe_serialization=True)",
          directory, pickle);
    }
  }
  for (const auto& [file, trainer] :
       {std::pair("adapters.safetensors", "mlx-lm"), {"lora.safetensors", "mistral-finetune"}}) {
    if (file_exists(join_path(directory, file)))
      return unsupported("{}: {} is an adapter as {} writes it; make a PEFT one of it with `lorikeet adapter convert`",
                         directory, file, trainer);
  }
  std::error_code error;
  if (!is_directory(directory))
    return not_found("{}: {}", directory, file_exists(directory) ? "a file, not a directory" : "no such directory");
  // PEFT saves an adapter that is not called "default" in a folder of its name, trainers have one for each checkpoint.
  std::vector<std::string> inside;
  size_t looked = 0;
  constexpr size_t kMostEntries = 1000, kMostNamed = 5;
  for (std::filesystem::directory_iterator at(directory, error);
       !error && at != std::filesystem::directory_iterator() && looked < kMostEntries; at.increment(error), ++looked)
    if (file_exists(join_path(at->path().string(), kAdapterWeightsFile))) inside.push_back(at->path().string());
  if (!inside.empty()) {
    std::ranges::sort(inside);
    inside.resize(std::min(inside.size(), kMostNamed));
    return not_found("{}: no {} here, but in {}: give that directory", directory, kAdapterWeightsFile,
                     fmt::join(inside, ", "));
  }
  return not_found("{}: no {}; is this a PEFT adapter directory?", directory, kAdapterWeightsFile);
}

}  // namespace

Result<std::optional<int64_t>> read_own_vocab_size(const std::string& directory, const ModelConfig& config) {
  std::vector<TensorEntry> tensors;
  const auto accept = [&](SafetensorsIndex& index) {
    tensors = std::move(index.tensors);
    index.tensors.clear();
    return Status();
  };
  LK_ASSIGN_OR_RETURN(const auto file,
                      TensorStore::open_file(join_path(directory, kAdapterWeightsFile), {.accept = accept}));
  Result<std::optional<int64_t>> rows = own_vocab_size_of(tensors, config);
  return rows.ok() ? rows : rows.status().with_context(directory);
}

Result<std::shared_ptr<const Adapter>> load_adapter(const std::string& name, const std::string& directory,
                                                    const ModelConfig& config, const TensorStore* base,
                                                    const AdapterLoadOptions& options) {
  const std::string config_path = join_path(directory, kAdapterConfigFile);
  const std::string weights_path = join_path(directory, kAdapterWeightsFile);
  if (!file_exists(weights_path)) return missing_files(directory);
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(config_path, size_t{8} << 20));
  LK_ASSIGN_OR_RETURN(AdapterConfig adapter_config, parse_adapter_config(text, config_path));
  auto adapter = std::make_shared<Adapter>();
  adapter->name = name;
  adapter->directory = directory;
  adapter->warnings = adapter_config.warnings;
  adapter->config = std::move(adapter_config);
  AdapterLoader loader(config, base, options, *adapter);
  const auto accept = [&](SafetensorsIndex& index) { return loader.accept(index).with_context(directory); };
  LK_ASSIGN_OR_RETURN(adapter->file, TensorStore::open_file(weights_path, {.copy = options.copy_file,
                                                                           .max_bytes = options.max_bytes,
                                                                           .accept = accept,
                                                                           .digest_after = text}));
  adapter->file_bytes = adapter->file->size_bytes();
  if (Status status = loader.run(); !status.ok()) return status.with_context(directory);
  adapter->digest = to_hex(adapter->file->digest());
  constexpr size_t kMaxWarnings = 100;  // a hostile config has thousands of unknown keys
  if (adapter->warnings.size() > kMaxWarnings) {
    const size_t more = adapter->warnings.size() - kMaxWarnings;
    adapter->warnings.resize(kMaxWarnings);
    adapter->warnings.push_back(fmt::format("and {} more warnings", more));
  }
  return std::shared_ptr<const Adapter>(std::move(adapter));
}

}  // namespace lk
