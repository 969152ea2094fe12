// SPDX-License-Identifier: Apache-2.0
// What a TrainableAdapter has learnt, as an adapter that can be saved and served.
#include <algorithm>

#include "lk/train/trainable_adapter.h"

namespace lk {
namespace {

// A view of `data` that a snapshot owns.
TensorView keep(Adapter& adapter, std::span<const float> data, std::initializer_list<int64_t> shape) {
  Buffer buffer(std::max<int64_t>(static_cast<int64_t>(data.size_bytes()), 64));
  std::copy(data.begin(), data.end(), buffer.as<float>());
  const TensorView view(buffer.data(), DType::kF32, shape);
  adapter.owned.push_back(std::move(buffer));
  return view;
}

}  // namespace

Adapter TrainableAdapter::snapshot() const {
  Adapter adapter;
  adapter.config.use_rslora = config_.use_rslora;
  adapter.config.base_model_name = config_.base_model_name;
  adapter.config.dropout = options_.dropout;
  const auto read = [&](const void* from, int64_t n) {
    std::vector<float> host(static_cast<size_t>(n));
    backend_.read(host.data(), from, n * 4);
    return host;
  };
  const auto host_value = [&](int index) { return read(params_.value(index), param(index).size()); };
  // Straight into the snapshot's memory: a head is large.
  const auto kept = [&](int index, std::initializer_list<int64_t> shape) {
    const int64_t bytes = param(index).size() * 4;
    Buffer buffer(std::max<int64_t>(bytes, 64));
    backend_.read(buffer.data(), params_.value(index), bytes);
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter.owned.push_back(std::move(buffer));
    return view;
  };
  const auto delta_of = [&](const Slot& slot) {
    LoraDelta delta;
    delta.rank = slot.rank;
    delta.scaling = slot.scaling;
    delta.a = kept(slot.a, {slot.rank, slot.in});
    const std::vector<float> b = slot.sigma >= 0 ? read(slot.folded_b, slot.rank * slot.out) : host_value(slot.b);
    delta.b = keep(adapter, transposed_copy(b, slot.rank, slot.out), {slot.out, slot.rank});
    if (slot.bias >= 0) delta.bias = kept(slot.bias, {slot.out});
    if (slot.dora()) {
      delta.magnitude = kept(slot.magnitude, {slot.out});
      delta.dora_scale = keep(adapter, read(slot.scales, slot.out), {slot.out});
      adapter.config.use_dora = true;
    }
    adapter.max_rank = std::max(adapter.max_rank, slot.rank);
    return delta;
  };
  adapter.layers.resize(layers_.size());
  for (size_t index = 0; index < layers_.size(); ++index)
    for (int proj = 0; proj < kNumProjs; ++proj)
      if (const auto& slot = layers_[index].slots[static_cast<size_t>(proj)])
        adapter.layers[index][static_cast<size_t>(proj)] = delta_of(*slot);
  if (head_) adapter.lm_head = delta_of(*head_);
  if (embedding_a_ >= 0) {
    adapter.embedding = Adapter::EmbeddingDelta{embedding_rank_, embedding_scaling_,
                                                kept(embedding_a_, {embedding_rank_, weights_.shape.vocab_size}),
                                                kept(embedding_b_, {weights_.shape.hidden_dim, embedding_rank_})};
  }
  for (size_t index = 0; index < params().size(); ++index) {
    const Param& param = params()[index];
    if (param.kind != ParamKind::kWeight) continue;
    if (param.module.layer >= 0) adapter.replaced.layers.resize(layers_.size());
    const int own = static_cast<int>(index);
    adapter.replaced.slot({param.module}) =
        param.module.is_vocabulary() ? kept(own, {param.rows, param.cols}) : kept(own, {param.cols});
  }
  if (tokens_ >= 0) {
    adapter.trained_token_ids.assign(token_ids_.begin(), token_ids_.end());
    adapter.trained_token_rows = kept(tokens_, {param(tokens_).rows, param(tokens_).cols});
  }
  return adapter;
}

SparseValues TrainableAdapter::sparse_values() const {
  SparseValues values;
  for (size_t index = 0; index < params().size(); ++index) {
    const Param& param = params()[index];
    if (param.kind != ParamKind::kSparse) continue;
    std::vector<float>& to = values[param.module];
    to.resize(static_cast<size_t>(param.size()));
    backend_.read(to.data(), params_.value(static_cast<int>(index)), param.size() * 4);
  }
  return values;
}

}  // namespace lk
