// SPDX-License-Identifier: Apache-2.0
// Decoder: the forward pass of Llama, Mistral, Qwen2 and Qwen3, from one configuration.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lk/model/resident_adapter.h"
#include "lk/model/weights.h"
#include "lk/ops/backend.h"

namespace lk {

// One step's rows, sorted by adapter; every array lives until forward() returns.
struct DecoderBatch {
  std::span<const int32_t> token_ids;  // [num_rows]
  std::span<const int64_t> slots;      // [num_rows] where each row's K and V go
  const float* cos = nullptr;          // [num_rows, head_dim / 2]
  const float* sin = nullptr;
  std::span<const AttentionSeq> sequences;
  std::span<const AdapterRun> runs;  // ascending, cover all rows
  // With both: rows of all other runs run on W' too and have the delta of `subtract` taken off again. One product for
  // all rows, but their results are no longer bit for bit those on W.
  const MergedWeights* subtract_from = nullptr;
  const ResidentAdapter* subtract = nullptr;
};

class Decoder {
 public:
  // Buffers are sized for max_rows rows a step and max_logit_rows rows a logits() call.
  Decoder(std::shared_ptr<const ModelWeights> weights, Backend& backend, int64_t max_rows, int64_t max_logit_rows);

  // Geometry of the KV pages (bytes): page = num_layers slices of [K | V], 16 tokens each.
  int64_t slice_bytes() const { return 2 * kv_bytes_; }
  int64_t page_bytes() const { return slice_bytes() * weights_->config.num_layers; }
  void set_pool(std::byte* base) { pool_base_ = base; }

  // Runs all layers; hidden states of all rows stay inside for logits(). `between_layers` (may be empty) is called
  // after each, on this thread; it must not change what the batch refers to.
  void forward(const DecoderBatch& batch, const std::function<void()>& between_layers = {});
  // Logits of `rows` (ascending rows of the last forward): f32 [rows.size(), vocab_size], row stride logits_stride().
  // Requires: rows.size() <= max_logit_rows.
  const float* logits(std::span<const int32_t> rows, std::span<const AdapterRun> runs);
  // Last hidden states of `rows` after the final norm (Hugging Face's last_hidden_state): f32 [rows.size(),
  // hidden_dim]. Requires: rows.size() <= max_logit_rows. Valid until the next call of hidden() or logits().
  const float* hidden(std::span<const int32_t> rows, std::span<const AdapterRun> runs);
  int64_t logits_stride() const { return logits_stride_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }

  // Seconds spent in LoRA products since the start: what merging could save.
  double lora_seconds() const { return lora_seconds_; }

  // Grows the LoRA scratch for an adapter whose group ranks sum to more than seen so far.
  void reserve_rank(int64_t sum_of_ranks);

 private:
  void embed(const DecoderBatch& batch);
  void attention_block(int64_t layer, const DecoderBatch& batch);
  void mlp_block(int64_t layer, const DecoderBatch& batch);
  // Gathers rows of the residual stream and applies the final norm: y [rows.size(), hidden_dim] of y_dtype.
  void final_norm(std::span<const int32_t> rows, std::span<const AdapterRun> runs, void* y, DType y_dtype);
  void clip_runs(std::span<const AdapterRun> runs, int64_t begin, int64_t end);
  // y[rows, group_columns] = linear(x) with each run's adapter, bias included.
  void linear(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
              std::span<const AdapterRun> runs, int64_t num_rows);
  // Adds the low-rank products of the runs that need them, and the LoRA biases of merged ones.
  void add_deltas(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
                  std::span<const AdapterRun> runs);
  void subtract_delta(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
                      std::span<const AdapterRun> runs);
  void lora(const void* x, int64_t x_stride, float* y, int64_t y_stride);  // of segments_
  bool subtracts(int64_t layer, ProjGroup group) const;
  void norm(const float* x, const float* weight, const float* ResidentAdapter::Layer::*replaced, int64_t layer,
            std::span<const AdapterRun> runs, int64_t num_rows);
  void head_norm(float* x, int64_t x_stride, int64_t num_heads, const float* weight,
                 const float* ResidentAdapter::Layer::*replaced, int64_t layer, std::span<const AdapterRun> runs);
  // Rows [begin, end) of one product with a matrix packed like the group's.
  void product(const PackedWeight& w, ProjGroup group, const void* x, int64_t x_stride, float* y, int64_t begin,
               int64_t end);
  void replaced_linear(int64_t layer, ProjGroup group, const ResidentAdapter& adapter, const void* x, int64_t x_stride,
                       float* y, int64_t begin, int64_t end);
  const std::byte* act_row(const void* x, int64_t x_stride, int64_t row) const {
    return static_cast<const std::byte*>(x) + row * x_stride * act_bytes_;
  }

  std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  int64_t max_rows_, max_logit_rows_;
  int64_t act_bytes_, kv_bytes_;
  std::byte* pool_base_ = nullptr;

  int64_t qkv_columns_, gate_up_columns_, product_columns_, logits_stride_, rank_capacity_ = 0;
  Buffer hidden_;      // f32 [max_rows, hidden_dim] residual stream
  Buffer normed_;      // act [max_rows, hidden_dim]
  Buffer qkv_;         // f32 [max_rows, qkv_columns]
  Buffer attended_;    // act [max_rows, q_dim]
  Buffer gate_up_;     // f32 [block rows, gate_up_columns]
  Buffer activated_;   // act [block rows, intermediate_dim]
  Buffer product_;     // f32 [max_rows, hidden_dim padded] of o and down
  Buffer rank_rows_;   // f32 [max_rows, rank_capacity]
  Buffer head_input_;  // act [max_logit_rows, hidden_dim]
  Buffer gathered_;    // f32 [max_logit_rows, hidden_dim]
  Buffer logits_;      // f32 [max_logit_rows, logits_stride]
  std::vector<LoraSegment> segments_;
  const MergedWeights* subtract_from_ = nullptr;  // of the batch being run
  const ResidentAdapter* subtract_ = nullptr;
  std::array<std::vector<LoraProj>, kNumProjGroups> minus_;  // scratch: projections with the sign turned
  double lora_seconds_ = 0;
  std::vector<AdapterRun> block_runs_;
};

}  // namespace lk
