// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/adapter.h"

#include "lk/base/file.h"
#include "lk/base/sha256.h"
#include "lk/lora/adapter_loader.h"

namespace lk {

const char* hf_name(Proj proj) {
  switch (proj) {
    case Proj::kQ:
      return "self_attn.q_proj";
    case Proj::kK:
      return "self_attn.k_proj";
    case Proj::kV:
      return "self_attn.v_proj";
    case Proj::kO:
      return "self_attn.o_proj";
    case Proj::kGate:
      return "mlp.gate_proj";
    case Proj::kUp:
      return "mlp.up_proj";
    case Proj::kDown:
      return "mlp.down_proj";
  }
  return "?";
}

int64_t in_dim(Proj proj, const ModelConfig& config) {
  switch (proj) {
    case Proj::kO:
      return config.q_dim();
    case Proj::kDown:
      return config.intermediate_dim;
    default:
      return config.hidden_dim;
  }
}

int64_t out_dim(Proj proj, const ModelConfig& config) {
  switch (proj) {
    case Proj::kQ:
      return config.q_dim();
    case Proj::kK:
    case Proj::kV:
      return config.kv_dim();
    case Proj::kGate:
    case Proj::kUp:
      return config.intermediate_dim;
    case Proj::kO:
    case Proj::kDown:
      return config.hidden_dim;
  }
  return 0;
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
  return not_found("{}: no adapter_model.safetensors; is this a PEFT adapter directory?", directory);
}

}  // namespace

Result<std::shared_ptr<const Adapter>> load_adapter(const std::string& name, const std::string& directory,
                                                    const ModelConfig& config, const TensorStore* base,
                                                    const AdapterLoadOptions& options) {
  const std::string config_path = join_path(directory, "adapter_config.json");
  const std::string weights_path = join_path(directory, "adapter_model.safetensors");
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(config_path, size_t{8} << 20));
  LK_ASSIGN_OR_RETURN(AdapterConfig adapter_config, parse_adapter_config(text, config_path));
  if (!file_exists(weights_path)) return missing_files(directory);
  LK_ASSIGN_OR_RETURN(std::shared_ptr<const TensorStore> file,
                      options.copy_file ? TensorStore::copy_file(weights_path, options.max_bytes)
                                        : TensorStore::open_file(weights_path));
  if (file->size_bytes() > options.max_bytes) {
    return resource_exhausted("{} has {} bytes, more than the limit of {}", weights_path, file->size_bytes(),
                              options.max_bytes);
  }
  auto adapter = std::make_shared<Adapter>();
  adapter->name = name;
  adapter->directory = directory;
  adapter->file_bytes = file->size_bytes();
  Sha256 digest;
  digest.update(text.data(), text.size());
  digest.update(file->file_bytes(0));
  adapter->digest = to_hex(digest.finish());
  adapter->file = std::move(file);
  adapter->warnings = adapter_config.warnings;
  adapter->config = std::move(adapter_config);
  AdapterLoader loader(config, base, options, *adapter);
  if (Status status = loader.run(); !status.ok()) return status.with_context(directory);
  constexpr size_t kMaxWarnings = 100;  // a hostile config has thousands of unknown keys
  if (adapter->warnings.size() > kMaxWarnings) {
    const size_t more = adapter->warnings.size() - kMaxWarnings;
    adapter->warnings.resize(kMaxWarnings);
    adapter->warnings.push_back(fmt::format("and {} more warnings", more));
  }
  return std::shared_ptr<const Adapter>(std::move(adapter));
}

}  // namespace lk
