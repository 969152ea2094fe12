// SPDX-License-Identifier: Apache-2.0
// TrainOps: the ops of a back-end that only training uses, apart from Backend so that serving does not see them. What
// Backend says of addresses, time and threads (the engine's thread) holds here. A public call checks its arguments,
// then does the device's one.
#pragma once

#include "lk/kernels/sparse_args.h"
#include "lk/kernels/train_args.h"

namespace lk {

class TrainOps {
 public:
  virtual ~TrainOps() = default;

  void gemm_transposed(const GemmTransposedArgs& a);
  void outer(std::span<const OuterProduct> products);
  void round_rows(const RoundRowsArgs& a);
  void rms_norm_backward(const RmsNormBackwardArgs& a);
  void swiglu_keep(const SwigluKeepArgs& a);
  void swiglu_backward(const SwigluBackwardArgs& a);
  void block_attention(const BlockAttentionArgs& a);
  void block_attention_backward(const BlockAttentionBackwardArgs& a);
  void cross_entropy(const CrossEntropyArgs& a);
  void scatter_rows(const ScatterRowsArgs& a);
  void embedding_delta_backward(const EmbeddingDeltaBackwardArgs& a);
  void take_columns(const TakeColumnsArgs& a);
  void dropout(const DropoutArgs& a);
  void row_squares(const RowSquaresArgs& a);
  void dora_scales(const DoraScalesArgs& a);
  void dora_magnitude_grad(const DoraMagnitudeGradArgs& a);
  void column_sum(const ColumnSumArgs& a);
  void fold_modules(const ModuleScalesArgs& a);
  void unfold_modules(const ModuleScalesArgs& a);
  void adamw(const AdamwArgs& a);
  void sparse_product(const SparseProductArgs& a);
  void sparse_input_gradient(const SparseInputGradientArgs& a);
  void sparse_gradient(const SparseGradientArgs& a);
  void proximal_gradient(const ProximalArgs& a);
  // sum of squares of n values in f64, in blocks of a fixed size that are added in order; waits for it. Not finite when
  // a value is not.
  double sum_squares(const float* x, int64_t n);
  void fill(float* x, int64_t n, float value);
  // Bytes that block_attention and its backward pass take for sequences of these lengths beside what they are given, at
  // most, and keep for the next call. Pointers and strides are not read.
  int64_t block_attention_scratch_bytes(const BlockAttention& in) const;

 private:
  virtual void do_gemm_transposed(const GemmTransposedArgs& a) = 0;
  virtual void do_outer(std::span<const OuterProduct> products) = 0;
  virtual void do_round_rows(const RoundRowsArgs& a) = 0;
  virtual void do_rms_norm_backward(const RmsNormBackwardArgs& a) = 0;
  virtual void do_swiglu_keep(const SwigluKeepArgs& a) = 0;
  virtual void do_swiglu_backward(const SwigluBackwardArgs& a) = 0;
  virtual void do_block_attention(const BlockAttentionArgs& a) = 0;
  virtual void do_block_attention_backward(const BlockAttentionBackwardArgs& a) = 0;
  virtual int64_t do_block_attention_scratch_bytes(const BlockAttention& in) const = 0;
  virtual void do_cross_entropy(const CrossEntropyArgs& a) = 0;
  virtual void do_scatter_rows(const ScatterRowsArgs& a) = 0;
  virtual void do_embedding_delta_backward(const EmbeddingDeltaBackwardArgs& a) = 0;
  virtual void do_take_columns(const TakeColumnsArgs& a) = 0;
  virtual void do_dropout(const DropoutArgs& a) = 0;
  virtual void do_row_squares(const RowSquaresArgs& a) = 0;
  virtual void do_dora_scales(const DoraScalesArgs& a) = 0;
  virtual void do_dora_magnitude_grad(const DoraMagnitudeGradArgs& a) = 0;
  virtual void do_column_sum(const ColumnSumArgs& a) = 0;
  virtual void do_fold_modules(const ModuleScalesArgs& a) = 0;
  virtual void do_unfold_modules(const ModuleScalesArgs& a) = 0;
  virtual void do_adamw(const AdamwArgs& a) = 0;
  virtual void do_sparse_product(const SparseProductArgs& a) = 0;
  virtual void do_sparse_input_gradient(const SparseInputGradientArgs& a) = 0;
  virtual void do_sparse_gradient(const SparseGradientArgs& a) = 0;
  virtual void do_proximal_gradient(const ProximalArgs& a) = 0;
  virtual double do_sum_squares(const float* x, int64_t n) = 0;
  virtual void do_fill(float* x, int64_t n, float value) = 0;
};

}  // namespace lk
