// SPDX-License-Identifier: Apache-2.0
// The kernels of training (train_args.h): those that are written for each instruction set in a table, like CpuKernels,
// the others as ordinary functions. lk::ref holds the scalar references.
#pragma once

#include <span>

#include "lk/kernels/cpu.h"
#include "lk/kernels/sparse.h"
#include "lk/kernels/train_args.h"

namespace lk {

// All launchers run on the pool's threads and return when done.
struct TrainKernels {
  void (*gemm_transposed)(const GemmTransposedArgs&, ThreadPool&);
  void (*outer)(std::span<const OuterProduct>, ThreadPool&);
  void (*round_rows)(const RoundRowsArgs&, ThreadPool&);
  void (*rms_norm_backward)(const RmsNormBackwardArgs&, ThreadPool&);
  void (*swiglu_keep)(const SwigluKeepArgs&, ThreadPool&);
  void (*swiglu_backward)(const SwigluBackwardArgs&, ThreadPool&);
  void (*block_attention)(const BlockAttentionArgs&, ThreadPool&);
  void (*block_attention_backward)(const BlockAttentionBackwardArgs&, ThreadPool&);
  // Bytes that the two need of every thread's scratch, at most, for sequences of these lengths; no pointer is read.
  int64_t (*block_attention_scratch)(const BlockAttention&);
  void (*cross_entropy)(const CrossEntropyArgs&, ThreadPool&);
  // The same bits on every instruction set:
  void (*adamw)(const AdamwArgs&, ThreadPool&);
  SparseRowKernels sparse_row;
};
const TrainKernels& train_kernels(CpuIsa isa);  // Requires: isa is in supported_cpu_isas()

// The same code and the same bits on every instruction set.
void scatter_rows(const ScatterRowsArgs&, ThreadPool&);
void embedding_delta_backward(const EmbeddingDeltaBackwardArgs&, ThreadPool&);
void take_columns(const TakeColumnsArgs&, ThreadPool&);
void dropout(const DropoutArgs&, ThreadPool&);
void row_squares(const RowSquaresArgs&, ThreadPool&);
void dora_scales(const DoraScalesArgs&, ThreadPool&);
void dora_magnitude_grad(const DoraMagnitudeGradArgs&, ThreadPool&);
void column_sum(const ColumnSumArgs&, ThreadPool&);
void fold_modules(const ModuleScalesArgs&, ThreadPool&);
void unfold_modules(const ModuleScalesArgs&, ThreadPool&);
double sum_squares(const float* x, int64_t n, ThreadPool&);
void fill(float* x, int64_t n, float value, ThreadPool&);

// Bytes of scratch that kernels have left with the calling thread, for its next call.
int64_t thread_scratch_bytes();

namespace ref {
// Straight loops, sums in double; the same contracts.
void gemm_transposed(const GemmTransposedArgs&);
void outer(const OuterProduct&);
void round_rows(const RoundRowsArgs&);
void rms_norm_backward(const RmsNormBackwardArgs&);
void swiglu_keep(const SwigluKeepArgs&);
void swiglu_backward(const SwigluBackwardArgs&);
void block_attention(const BlockAttentionArgs&);
void block_attention_backward(const BlockAttentionBackwardArgs&);
void cross_entropy(const CrossEntropyArgs&);
}  // namespace ref

}  // namespace lk
