// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/merge.h"

#include <algorithm>
#include <set>

#include "lk/lora/delta_math.h"
#include "lk/lora/module_names.h"

namespace lk {
namespace {

constexpr const char* kEmbedWeight = "model.embed_tokens.weight";
constexpr const char* kHeadWeight = "lm_head.weight";

struct Split {
  std::string module;
  bool is_bias;
};
Split split_name(const std::string& name) {
  const size_t dot = name.rfind('.');
  return {name.substr(0, dot), name.substr(dot) == ".bias"};
}

const LoraDelta* find_delta(const Adapter& adapter, const ModelConfig& config, const std::string& module) {
  if (module == kLmHead) return adapter.lm_head ? &*adapter.lm_head : nullptr;
  const std::optional<ProjPlace> place = find_projection(module, config);
  if (!place || place->projs.size() != 1) return nullptr;
  const auto& delta = adapter.layers[static_cast<size_t>(place->layer)][static_cast<size_t>(place->projs.front())];
  return delta ? &*delta : nullptr;
}

bool has_trained_rows(const Adapter& adapter, const ModelConfig& config, const std::string& name) {
  return !adapter.trained_token_ids.empty() &&
         (name == kEmbedWeight || (name == kHeadWeight && config.tie_word_embeddings));
}

// The value below the adapter's deltas: a replacement, or the base's.
Result<TensorView> underlying(const std::string& name, const Adapter& adapter, const ModelConfig& config,
                              const TensorStore& base) {
  if (const auto replaced = adapter.replaced.find(name); replaced != adapter.replaced.end()) return replaced->second;
  const TensorView* view = base.find(name == kHeadWeight && config.tie_word_embeddings ? kEmbedWeight : name);
  if (view == nullptr) return data_loss("base tensor '{}' is missing", name);
  return *view;
}

void replace_trained_rows(const Adapter& adapter, int64_t first, int64_t count, int64_t width, float* rows) {
  for (size_t index = 0; index < adapter.trained_token_ids.size(); ++index) {
    const int64_t row = adapter.trained_token_ids[index] - first;
    if (row < 0 || row >= count) continue;
    convert(adapter.trained_token_rows.row(static_cast<int64_t>(index)), adapter.trained_token_rows.dtype(),
            rows + row * width, DType::kF32, width);
  }
}

Status visit_bias(const TensorView& bias, const LoraDelta* delta, const RowVisitor& visit) {
  const auto n = static_cast<size_t>(bias.num_elements());
  std::vector<float> values(n), added(n);
  bias.copy_to(values.data());
  if (delta != nullptr && delta->bias.defined()) {
    delta->bias.copy_to(added.data());
    for (size_t index = 0; index < n; ++index) values[index] += static_cast<float>(delta->scaling) * added[index];
  }
  return visit(0, 1, values.data());
}

// Blocks of a matrix without a low-rank change.
Status visit_plain(const TensorView& weight, const std::function<Status(int64_t, int64_t, float*)>& visit) {
  if (weight.num_dims() != 2) {
    std::vector<float> values(static_cast<size_t>(weight.num_elements()));
    weight.copy_to(values.data());
    return visit(0, 1, values.data());
  }
  constexpr int64_t kBlockRows = 64;
  std::vector<float> block(static_cast<size_t>(kBlockRows * weight.dim(1)));
  for (int64_t begin = 0; begin < weight.dim(0); begin += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, weight.dim(0) - begin);
    convert(weight.row(begin), weight.dtype(), block.data(), DType::kF32, rows * weight.dim(1));
    LK_RETURN_IF_ERROR(visit(begin, rows, block.data()));
  }
  return Status();
}

}  // namespace

std::vector<std::string> changed_tensors(const Adapter& adapter, const ModelConfig& config) {
  std::set<std::string> names;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      const auto& delta = adapter.layers[layer][static_cast<size_t>(proj)];
      if (!delta) continue;
      const std::string module = module_path(static_cast<int64_t>(layer), static_cast<Proj>(proj));
      names.insert(module + ".weight");
      if (delta->bias.defined()) names.insert(module + ".bias");
    }
  }
  if (adapter.lm_head) {
    names.insert(kHeadWeight);
    if (adapter.lm_head->bias.defined()) names.insert("lm_head.bias");
  }
  if (adapter.embedding) names.insert(kEmbedWeight);
  for (const auto& [name, view] : adapter.replaced) names.insert(name);
  for (const char* name : {kEmbedWeight, kHeadWeight}) {
    if (has_trained_rows(adapter, config, name)) names.insert(name);
  }
  return {names.begin(), names.end()};
}

Status visit_merged_tensor(const std::string& name, const Adapter& adapter, const ModelConfig& config,
                           const TensorStore& base, const RowVisitor& visit) {
  const auto [module, is_bias] = split_name(name);
  const LoraDelta* delta = find_delta(adapter, config, module);
  LK_ASSIGN_OR_RETURN(const TensorView weight, underlying(name, adapter, config, base));
  if (is_bias) return visit_bias(weight, delta, visit);

  const bool trained_rows = has_trained_rows(adapter, config, name);
  std::vector<float> scales;
  if (delta != nullptr && delta->dora_scale.defined()) {
    scales.resize(static_cast<size_t>(weight.dim(0)));
    delta->dora_scale.copy_to(scales.data());
  }
  const auto finish = [&](int64_t first, int64_t count, float* rows) {
    const int64_t width = weight.num_dims() == 2 ? weight.dim(1) : 0;
    for (int64_t row = 0; row < count && !scales.empty(); ++row) {
      const float scale = scales[static_cast<size_t>(first + row)];
      for (int64_t column = 0; column < width; ++column) rows[row * width + column] *= scale;
    }
    if (trained_rows) replace_trained_rows(adapter, first, count, width, rows);
    return visit(first, count, rows);
  };

  // The embedding's delta is that of a linear layer whose output rows are tokens.
  LoraDelta of_embedding;
  std::vector<Buffer> scratch;
  if (name == kEmbedWeight && adapter.embedding) {
    of_embedding.rank = adapter.embedding->rank;
    of_embedding.scaling = adapter.embedding->scaling;
    of_embedding.a = transposed(adapter.embedding->b, scratch);
    of_embedding.b = transposed(adapter.embedding->a, scratch);
    delta = &of_embedding;
  }
  if (delta == nullptr) return visit_plain(weight, finish);
  Status status;
  for_each_merged_block(weight, *delta, [&](int64_t first, int64_t count, float* rows) {
    if (status.ok()) status = finish(first, count, rows);
  });
  return status;
}

}  // namespace lk
