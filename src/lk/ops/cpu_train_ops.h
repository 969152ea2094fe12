// SPDX-License-Identifier: Apache-2.0
// The training ops of the CPU back-end (cpu_backend.h).
#pragma once

#include "lk/kernels/sparse.h"
#include "lk/kernels/train.h"
#include "lk/ops/train_ops.h"

namespace lk {

class CpuTrainOps final : public TrainOps {
 public:
  CpuTrainOps(const TrainKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

 private:
  void do_gemm_transposed(const GemmTransposedArgs& a) override { kernels_.gemm_transposed(a, pool_); }
  void do_outer(std::span<const OuterProduct> products) override { kernels_.outer(products, pool_); }
  void do_round_rows(const RoundRowsArgs& a) override { kernels_.round_rows(a, pool_); }
  void do_rms_norm_backward(const RmsNormBackwardArgs& a) override { kernels_.rms_norm_backward(a, pool_); }
  void do_swiglu_keep(const SwigluKeepArgs& a) override { kernels_.swiglu_keep(a, pool_); }
  void do_swiglu_backward(const SwigluBackwardArgs& a) override { kernels_.swiglu_backward(a, pool_); }
  void do_block_attention(const BlockAttentionArgs& a) override { kernels_.block_attention(a, pool_); }
  void do_block_attention_backward(const BlockAttentionBackwardArgs& a) override {
    kernels_.block_attention_backward(a, pool_);
  }
  int64_t do_block_attention_scratch_bytes(const BlockAttention& in) const override {
    return kernels_.block_attention_scratch(in) * pool_.size();
  }
  void do_cross_entropy(const CrossEntropyArgs& a) override { kernels_.cross_entropy(a, pool_); }
  void do_scatter_rows(const ScatterRowsArgs& a) override { lk::scatter_rows(a, pool_); }
  void do_embedding_delta_backward(const EmbeddingDeltaBackwardArgs& a) override {
    lk::embedding_delta_backward(a, pool_);
  }
  void do_take_columns(const TakeColumnsArgs& a) override { lk::take_columns(a, pool_); }
  void do_dropout(const DropoutArgs& a) override { lk::dropout(a, pool_); }
  void do_row_squares(const RowSquaresArgs& a) override { lk::row_squares(a, pool_); }
  void do_dora_scales(const DoraScalesArgs& a) override { lk::dora_scales(a, pool_); }
  void do_dora_magnitude_grad(const DoraMagnitudeGradArgs& a) override { lk::dora_magnitude_grad(a, pool_); }
  void do_column_sum(const ColumnSumArgs& a) override { lk::column_sum(a, pool_); }
  void do_fold_modules(const ModuleScalesArgs& a) override { lk::fold_modules(a, pool_); }
  void do_unfold_modules(const ModuleScalesArgs& a) override { lk::unfold_modules(a, pool_); }
  void do_adamw(const AdamwArgs& a) override { kernels_.adamw(a, pool_); }
  void do_sparse_product(const SparseProductArgs& a) override { lk::sparse_product(a, kernels_.sparse_row, pool_); }
  void do_sparse_input_gradient(const SparseInputGradientArgs& a) override {
    lk::sparse_input_gradient(a, kernels_.sparse_row, pool_);
  }
  void do_sparse_gradient(const SparseGradientArgs& a) override { lk::sparse_gradient(a, kernels_.sparse_row, pool_); }
  void do_proximal_gradient(const ProximalArgs& a) override { lk::proximal_gradient(a, pool_); }
  double do_sum_squares(const float* x, int64_t n) override { return lk::sum_squares(x, n, pool_); }
  void do_fill(float* x, int64_t n, float value) override { lk::fill(x, n, value, pool_); }

  const TrainKernels& kernels_;
  ThreadPool& pool_;
};

}  // namespace lk
