// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/merge.h"

#include <algorithm>
#include <set>

#include "lk/lora/delta_math.h"

namespace lk {
namespace {

const LoraDelta* find_delta(const Adapter& adapter, ModuleId module) {
  const auto pointer = [](const std::optional<LoraDelta>& delta) { return delta ? &*delta : nullptr; };
  if (module == kLmHead) return pointer(adapter.lm_head);
  const std::optional<Proj> proj = module.proj();
  return proj ? pointer(adapter.layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*proj)]) : nullptr;
}

bool has_trained_rows(const Adapter& adapter, const ModelConfig& config, ModuleId module) {
  return !adapter.trained_token_ids.empty() &&
         (module == kEmbedding || (module == kLmHead && config.tie_word_embeddings));
}

// The value below the adapter's deltas: a replacement, or the base's.
Result<TensorView> underlying(WeightId weight, const Adapter& adapter, const ModelConfig& config,
                              const TensorStore& base) {
  if (const TensorView& replaced = adapter.replaced.of(weight); replaced.defined()) return replaced;
  if (weight.module == kLmHead && config.tie_word_embeddings) weight.module = kEmbedding;
  const TensorView* view = base.find(weight_name(weight));
  if (view == nullptr) return data_loss("base tensor '{}' is missing", weight_name(weight));
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

std::vector<WeightId> changed_weights(const Adapter& adapter, const ModelConfig& config) {
  std::set<WeightId> changed;
  const auto add_delta = [&](ModuleId module, const LoraDelta& delta) {
    changed.insert({module});
    if (delta.bias.defined()) changed.insert({module, true});
  };
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer)
    for (int proj = 0; proj < kNumProjs; ++proj)
      if (const auto& delta = adapter.layers[layer][static_cast<size_t>(proj)]; delta)
        add_delta(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)), *delta);
  if (adapter.lm_head) add_delta(kLmHead, *adapter.lm_head);
  if (adapter.embedding) changed.insert({kEmbedding});
  for (const WeightId weight : adapter.replaced.ids()) changed.insert(weight);
  for (const ModuleId module : {kEmbedding, kLmHead})
    if (has_trained_rows(adapter, config, module)) changed.insert({module});
  return {changed.begin(), changed.end()};
}

Status visit_merged_weight(WeightId id, const Adapter& adapter, const ModelConfig& config, const TensorStore& base,
                           const RowVisitor& visit) {
  const LoraDelta* delta = find_delta(adapter, id.module);
  LK_ASSIGN_OR_RETURN(const TensorView weight, underlying(id, adapter, config, base));
  if (id.bias) return visit_bias(weight, delta, visit);

  const bool trained_rows = has_trained_rows(adapter, config, id.module);
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
  if (id.module == kEmbedding && adapter.embedding) {
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
