// SPDX-License-Identifier: Apache-2.0
// AdaptedOps: the embedding, norms, linears and head of the base as each row's adapter makes them. What walks the
// layers (the Decoder, training's pass) brings the rows, which adapter each of them uses, and where results go.
#pragma once

#include <span>
#include <vector>

#include "lk/model/adapter_run.h"
#include "lk/model/weights.h"
#include "lk/ops/backend.h"
#include "lk/ops/collective.h"

namespace lk {

// Linears that read one input, applied to some rows: y = x W^T with each run's adapter, the base's bias included.
struct LinearCall {
  static constexpr int64_t kHead = -1;
  int64_t layer = kHead;
  ProjGroup group = ProjGroup::kQkv;  // of a layer
  const void* x = nullptr;            // act [num_rows, inputs]
  int64_t x_stride = 0;
  const void* x_of_deltas = nullptr;  // what the adapters' low-rank parts read (dropout); null: x
  // f32 [num_rows, columns of the group, or the vocabulary in whole panels], dense; of the head with head_stride.
  float* y = nullptr;
  int64_t head_stride = 0;  // 0: the base's vocabulary in whole panels. Adapters with larger ones need more
  int64_t num_rows = 0;
  std::span<const AdapterRun> runs;  // of these rows
  float* rank_rows = nullptr;        // f32 [num_rows, rank_stride]: the low-rank parts' products with A
  int64_t rank_stride = 0;           // >= the largest sum of ranks of a run in the group
  // With a collective, of o and down: where this rank's parts of y and of rank_rows go, of the same strides. They may
  // be written again when the next such call has returned (ops/collective.h).
  float* y_part = nullptr;
  float* rank_rows_part = nullptr;
};

class AdaptedOps {
 public:
  // Calls of at most max_rows rows allocate nothing. `collective`: of the ranks that the model is divided among; null
  // where it is whole.
  AdaptedOps(const ModelWeights& weights, Backend& backend, int64_t max_rows, Collective* collective = nullptr);

  // Where rank rows lie of adapters that do not say so themselves: slices of layers, one after the other.
  void set_pool(const std::byte* base, int64_t slice_bytes) {
    pool_base_ = base;
    slice_bytes_ = slice_bytes;
  }

  void embed(std::span<const int32_t> tokens, std::span<const AdapterRun> runs, float* y);

  // y of y_dtype [num_rows, hidden_dim] may be x.
  using Norm = const float* ResidentAdapter::Layer::*;
  void norm(Norm norm, int64_t layer, const float* x, int64_t num_rows, std::span<const AdapterRun> runs, void* y);
  void final_norm(const float* x, int64_t num_rows, std::span<const AdapterRun> runs, void* y, DType y_dtype);
  // Qwen3's norms of every head of q and k, in place in the group's product.
  void head_norms(int64_t layer, float* qkv, int64_t num_rows, std::span<const AdapterRun> runs);
  // Rotates q and k in the group's product; cos and sin: f32 [num_rows, head_dim / 2].
  void rotate(float* qkv, int64_t num_rows, const float* cos, const float* sin);

  void linear(const LinearCall& call);
  // The parts of linear() on a whole model, in their order.
  void add_products(const LinearCall& call);
  void add_deltas(const LinearCall& call, LoraPhase phase = LoraPhase::kAll);
  // The largest rank_stride that a call can need.
  static int64_t rank_stride_of(const LinearCall& call);

 private:
  void add_biases(const LinearCall& call);
  void add_trained_columns(const LinearCall& call);
  void product(const LinearCall& call, const PackedWeight& w, int64_t column, int64_t begin, int64_t end);
  void add_bias(const LinearCall& call, const float* bias, int64_t column, int64_t num_columns, int64_t begin,
                int64_t end);
  void rms_norm(const float* x, int64_t x_stride, int64_t dim, int64_t num_rows, const float* weight, void* y,
                DType y_dtype, int64_t y_stride);
  int64_t columns_of_call(const LinearCall& call) const;
  bool sums_over_ranks(const LinearCall& call) const;
  int64_t shards_of(const LinearCall& call) const;
  void add_over_ranks(const LinearCall& call);

  const ModelWeights& weights_;
  Backend& backend_;
  Collective* const collective_;
  const int64_t act_bytes_;
  const std::byte* pool_base_ = nullptr;
  int64_t slice_bytes_ = 0;
  // Arguments of the op being called; kept for their memory.
  std::vector<EmbedRow> embed_rows_;
  std::vector<LoraSegment> segments_;
  std::vector<RankSum> sums_;
};

}  // namespace lk
