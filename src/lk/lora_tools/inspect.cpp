// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "lk/lora_tools/save.h"

namespace lk {
namespace {

void count(Inspection& inspection, const TensorView& view) {
  if (view.defined()) inspection.parameters += view.num_elements();
}

void add_target(Inspection& inspection, const std::string& name, int64_t rank, double scaling, bool bias, bool dora) {
  Inspection::Target& target = inspection.targets[name];
  if (target.num_layers++ == 0) {
    target.min_rank = target.max_rank = rank;
    target.min_scaling = target.max_scaling = scaling;
  }
  target.min_rank = std::min(target.min_rank, rank);
  target.max_rank = std::max(target.max_rank, rank);
  target.min_scaling = std::min(target.min_scaling, scaling);
  target.max_scaling = std::max(target.max_scaling, scaling);
  target.bias |= bias;
  target.dora |= dora;
}

void add_delta(Inspection& inspection, const std::string& name, const LoraDelta& delta) {
  add_target(inspection, name, delta.rank, delta.scaling, delta.bias.defined(), delta.magnitude.defined());
  for (const TensorView* view : {&delta.a, &delta.b, &delta.bias, &delta.magnitude}) count(inspection, *view);
}

template <class T>
std::string range_text(T low, T high) {
  return low == high ? fmt::format("{:.6g}", static_cast<double>(low))
                     : fmt::format("{:.6g}-{:.6g}", static_cast<double>(low), static_cast<double>(high));
}

}  // namespace

Inspection inspect_adapter(const Adapter& adapter) {
  Inspection inspection;
  inspection.name = adapter.name;
  inspection.directory = adapter.directory;
  inspection.digest = adapter.digest;
  inspection.base_model_name = adapter.config.base_model_name;
  inspection.peft_version = adapter.config.peft_version;
  inspection.file_bytes = adapter.file_bytes;
  inspection.max_rank = adapter.max_rank;
  for (const auto& layer : adapter.layers) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      const auto& delta = layer[static_cast<size_t>(proj)];
      if (delta) add_delta(inspection, short_name(ModuleId::of(0, static_cast<Proj>(proj))), *delta);
    }
  }
  if (adapter.lm_head) add_delta(inspection, short_name(kLmHead), *adapter.lm_head);
  if (adapter.embedding) {
    add_target(inspection, short_name(kEmbedding), adapter.embedding->rank, adapter.embedding->scaling, false, false);
    count(inspection, adapter.embedding->a);
    count(inspection, adapter.embedding->b);
  }
  for (const WeightId weight : adapter.replaced.ids()) {
    inspection.replaced.push_back(weight_name(weight));
    count(inspection, adapter.replaced.of(weight));
  }
  inspection.trained_token_ids = adapter.trained_token_ids;
  inspection.own_vocab_size = adapter.own_vocab_size;
  inspection.invocation_tokens = adapter.config.alora_invocation_tokens;
  count(inspection, adapter.trained_token_rows);
  if (adapter.file != nullptr) {
    for (const auto& [name, view] : adapter.file->tensors()) ++inspection.tensor_dtypes[to_string(view.dtype())];
  }
  inspection.warnings = adapter.warnings;
  return inspection;
}

std::string render_inspection(const Inspection& inspection) {
  std::string text = fmt::format("adapter     {}\ndirectory   {}\ndigest      sha256:{}\n", inspection.name,
                                 inspection.directory, inspection.digest);
  if (!inspection.base_model_name.empty()) text += fmt::format("base        {}\n", inspection.base_model_name);
  if (!inspection.peft_version.empty()) text += fmt::format("written by  PEFT {}\n", inspection.peft_version);
  std::string dtypes;
  for (const auto& [dtype, number] : inspection.tensor_dtypes)
    dtypes += fmt::format("{}{} x {}", dtypes.empty() ? "" : ", ", number, dtype);
  text += fmt::format("size        {} bytes, {} parameters, tensors: {}\n", inspection.file_bytes,
                      inspection.parameters, dtypes.empty() ? "none" : dtypes);
  for (const auto& [name, target] : inspection.targets) {
    text += fmt::format("  {:12} {:>4} {:6}  rank {:8}  scaling {}{}{}\n", name, target.num_layers,
                        target.num_layers == 1 ? "module" : "layers", range_text(target.min_rank, target.max_rank),
                        range_text(target.min_scaling, target.max_scaling), target.bias ? "  bias" : "",
                        target.dora ? "  DoRA" : "");
  }
  for (const std::string& name : inspection.replaced) text += fmt::format("  replaces     {}\n", name);
  if (!inspection.trained_token_ids.empty())
    text += fmt::format("  trained tokens: {}\n", inspection.trained_token_ids.size());
  if (inspection.own_vocab_size) text += fmt::format("  vocabulary   {} tokens\n", *inspection.own_vocab_size);
  if (!inspection.invocation_tokens.empty())
    text += fmt::format("  acts from the tokens {} on\n", fmt::join(inspection.invocation_tokens, " "));
  for (const std::string& warning : inspection.warnings) text += fmt::format("warning: {}\n", warning);
  return text;
}

Result<std::vector<std::string>> verify_adapter(const std::string& directory, const ModelConfig& config,
                                                const TensorStore* base, const AdapterLoadOptions& options) {
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<const Adapter> adapter,
                      load_adapter("verify", directory, config, base, options));
  return adapter->warnings;
}

}  // namespace lk
