// SPDX-License-Identifier: Apache-2.0
// Decoder: the forward pass of Llama, Mistral, Qwen2 and Qwen3, from one configuration.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lk/model/adapted_ops.h"
#include "lk/model/weights.h"
#include "lk/ops/backend.h"

namespace lk {

// One step's rows, sorted by adapter. Host arrays; forward() is done with all but `runs`' adapters when it returns.
struct DecoderBatch {
  std::span<const int32_t> token_ids;  // [num_rows]
  std::span<const int64_t> slots;      // [num_rows] where each row's K and V go
  std::span<const float> cos, sin;     // [num_rows, head_dim / 2]
  std::span<const AttentionSeq> sequences;
  std::span<const AdapterRun> runs;  // ascending, disjoint; rows of no run are the bare base's
};

class Decoder {
 public:
  // Buffers are sized for max_rows rows a step and max_logit_rows rows a logits() call. `collective`: this rank's end,
  // of weights that are a rank's; all ranks make the same calls of forward(). Null for a whole model.
  Decoder(std::shared_ptr<const ModelWeights> weights, Backend& backend, int64_t max_rows, int64_t max_logit_rows,
          Collective* collective = nullptr);
  // What these take together, known before there are weights. `shape`: of one of num_ranks ranks.
  static int64_t buffer_bytes(const ModelShape& shape, DType act, int64_t max_rows, int64_t max_logit_rows,
                              int num_ranks = 1);
  // The ranks of an adapter's projections in one group may sum to this: eight times the largest rank that is read from
  // a file, for weighted sums of several. Memory of rows that are never used is never touched.
  static constexpr int64_t kMaxGroupRank = 4096;

  // Geometry of the KV pages (bytes): page = num_layers slices of [K | V], 16 tokens each.
  int64_t slice_bytes() const { return 2 * kv_bytes_; }
  int64_t page_bytes() const { return slice_bytes() * weights_->shape.num_layers; }
  void set_pool(std::byte* base) {
    pool_base_ = base;
    ops_.set_pool(base, slice_bytes());
  }

  // The memory for logits is that of the base's vocabulary: a larger one of an adapter makes fewer rows fit at a time.
  // Whether one row does. From any thread.
  bool fits_vocabulary(int64_t num_tokens) const;
  // From now on adapters with up to so many tokens may run, and max_logit_rows() is what fits with these. Requires:
  // fits_vocabulary(). Not while results of logits() are in use.
  void set_vocabulary(int64_t num_tokens);
  // Runs all layers; hidden states of all rows stay inside for logits(). `between_layers` (may be empty) is called
  // after each, on this thread; it must not change what the batch refers to.
  void forward(const DecoderBatch& batch, const std::function<void()>& between_layers = {});
  // Logits of `rows` (ascending rows of the last forward): f32 [rows.size(), vocabulary of the row's adapter] in device
  // memory, row stride logits_stride(), valid until the next call. The caller may overwrite them. Requires: rows.size()
  // <= max_logit_rows.
  float* logits(std::span<const int32_t> rows, std::span<const AdapterRun> runs);
  // Last hidden states of `rows` after the final norm (Hugging Face's last_hidden_state): f32 [rows.size(),
  // hidden_dim] in device memory. Requires: rows.size() <= max_logit_rows. Valid until the next call of hidden() or
  // logits().
  const float* hidden(std::span<const int32_t> rows, std::span<const AdapterRun> runs);
  int64_t logits_stride() const { return logits_stride_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }

 private:
  void attention_block(int64_t layer, const DecoderBatch& batch);
  void mlp_block(int64_t layer, const DecoderBatch& batch);
  void linear(LinearCall call);  // with rank_rows_
  // Adds product_ to rows [begin, begin + num_rows) of the residual stream.
  void add_to_residual(int64_t begin, int64_t num_rows);
  // Gathers rows of the residual stream and applies the final norm: y [rows.size(), hidden_dim] of y_dtype. Leaves
  // their runs in local_runs_.
  void final_norm(std::span<const int32_t> rows, std::span<const AdapterRun> runs, void* y, DType y_dtype);

  std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  AdaptedOps ops_;
  int64_t max_rows_, max_logit_rows_;
  const int64_t num_head_rows_;  // max_logit_rows_ with the base's vocabulary
  int64_t act_bytes_, kv_bytes_;
  std::byte* pool_base_ = nullptr;

  // The buffers below and their sizes: nobody else knows them.
  static std::vector<std::pair<DeviceBuffer Decoder::*, int64_t>> buffers(const ModelShape& shape, DType act,
                                                                          int64_t max_rows, int64_t max_logit_rows,
                                                                          int num_ranks);
  static int64_t num_logits(const ModelShape& shape, int64_t max_logit_rows);
  int64_t qkv_columns_, gate_up_columns_, product_columns_, logits_stride_;
  DeviceBuffer slots_;      // i64 [max_rows] of the step
  DeviceBuffer cos_, sin_;  // f32 [max_rows, head_dim / 2]
  DeviceBuffer hidden_;     // f32 [max_rows, hidden_dim] residual stream
  DeviceBuffer normed_;     // act [max_rows, hidden_dim]
  DeviceBuffer qkv_;        // f32 [max_rows, qkv_columns]
  DeviceBuffer attended_;   // act [max_rows, q_dim]
  DeviceBuffer gate_up_;    // f32 [block rows, gate_up_columns]
  DeviceBuffer activated_;  // act [block rows, intermediate_dim]
  DeviceBuffer product_;    // f32 [max_rows, hidden_dim padded] of o and down
  DeviceBuffer rank_rows_;  // f32 [max_rows, kMaxGroupRank], as close as each call's ranks allow
  // Of several ranks: this one's parts of product_ and rank_rows_, used in turn.
  DeviceBuffer product_parts_;    // f32 2 x as product_
  DeviceBuffer rank_rows_parts_;  // f32 2 x as rank_rows_
  int next_part_ = 0;
  DeviceBuffer head_input_;             // act [max_logit_rows, hidden_dim]
  DeviceBuffer gathered_;               // f32 [max_logit_rows, hidden_dim]
  DeviceBuffer logits_;                 // f32 [max_logit_rows, logits_stride], and what is left of num_logits()
  std::vector<AdapterRun> local_runs_;  // of the rows in work; kept for its memory
};

}  // namespace lk
