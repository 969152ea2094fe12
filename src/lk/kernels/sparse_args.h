// SPDX-License-Identifier: Apache-2.0
// The argument structs of kernels over a sparse change of a weight, S [out, in]: values on a mask that never changes.
// The conventions of kernels/train_args.h hold: a row's result depends on that row alone, a gradient is one f32 chain
// per element over ascending rows.
#pragma once

#include <cstdint>

#include "lk/tensor/dtype.h"

namespace lk {

// Where the values of S stand, row by row; they themselves are an f32 array [nnz] in this order.
struct SparsePattern {
  const int64_t* row_begins = nullptr;  // [out + 1]
  const int32_t* columns = nullptr;     // [nnz], ascending within a row
  int64_t out = 0, in = 0, nnz = 0;
};

// y[m, o] += sum over k in row o of values[k] x[m, columns[k]]   (f32 chain over ascending k, then added)
struct SparseProductArgs {
  SparsePattern s;
  const float* values = nullptr;
  const void* x = nullptr;  // act [num_rows, in]
  DType act = DType::kBF16;
  int64_t x_stride = 0;
  float* y = nullptr;  // f32 [num_rows, out]
  int64_t y_stride = 0;
  int64_t num_rows = 0;
};

// dx[m, columns[k]] += values[k] dy[m, o] for all k in row o   (f32 chain over ascending o, then added)
struct SparseInputGradientArgs {
  SparsePattern s;
  const float* values = nullptr;
  const void* dy = nullptr;  // act [num_rows, out]
  DType act = DType::kBF16;
  int64_t dy_stride = 0;
  float* dx = nullptr;  // f32 [num_rows, in]
  int64_t dx_stride = 0;
  int64_t num_rows = 0;
};

// gradient[k] += sum_m dy[m, o] x[m, columns[k]] for k in row o   (chain over ascending m)
struct SparseGradientArgs {
  SparsePattern s;
  const void* dy = nullptr;  // act [num_rows, out]
  const void* x = nullptr;   // act [num_rows, in]
  DType act = DType::kBF16;
  int64_t dy_stride = 0, x_stride = 0;
  float* gradient = nullptr;  // f32 [nnz]
  int64_t num_rows = 0;
};

// gradient[i] += factor (x[i] - anchor[i]): of factor / 2 ||x - anchor||^2 (FedProx, arXiv:1812.06127).
struct ProximalArgs {
  const float* x = nullptr;
  const float* anchor = nullptr;
  float* gradient = nullptr;
  int64_t n = 0;
  float factor = 0;
};

}  // namespace lk
