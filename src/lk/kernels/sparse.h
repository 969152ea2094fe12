// SPDX-License-Identifier: Apache-2.0
// The kernels of sparse_args.h: the same code and the same bits on every instruction set and number of threads.
#pragma once

#include "lk/base/thread_pool.h"
#include "lk/kernels/sparse_args.h"

namespace lk {

// What is done for one row of S, of n values, in a table of each instruction set (TrainKernels). Activations of
// kSparseRows rows of the batch stand side by side: column i begins at i * kSparseRows.
inline constexpr int64_t kSparseRows = 16;
struct SparseRowKernels {
  // sum [kSparseRows] = the row times x [in, kSparseRows].
  void (*product)(const float* values, const int32_t* columns, int64_t n, const float* x, float* sum);
  // dx [in, kSparseRows] += the row, transposed, times dy [kSparseRows].
  void (*input_gradient)(const float* values, const int32_t* columns, int64_t n, const float* dy, float* dx);
  // gradient [n] += dy * x at the row's columns; null: at all, in order.
  void (*gradient)(float dy, const float* x, const int32_t* columns, int64_t n, float* gradient);
};

void sparse_product(const SparseProductArgs&, const SparseRowKernels&, ThreadPool&);
void sparse_input_gradient(const SparseInputGradientArgs&, const SparseRowKernels&, ThreadPool&);
void sparse_gradient(const SparseGradientArgs&, const SparseRowKernels&, ThreadPool&);
void proximal_gradient(const ProximalArgs&, ThreadPool&);

}  // namespace lk
