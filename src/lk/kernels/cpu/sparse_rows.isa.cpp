// SPDX-License-Identifier: Apache-2.0
// One row of a sparse matrix against kSparseRows rows of activations that stand side by side, as one
// vector. Never contracted, each value a chain in the order of the row: the same bits on every instruction set.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {

static_assert(kSparseRows == 16, "one vector");

void sparse_row_product(const float* values, const int32_t* columns, int64_t n, const float* x, float* sum) {
  F32x16 own = zero();
  for (int64_t k = 0; k < n; ++k) own = add(own, mul(broadcast(values[k]), load(x + columns[k] * kSparseRows)));
  store(sum, own);
}

void sparse_row_input_gradient(const float* values, const int32_t* columns, int64_t n, const float* dy, float* dx) {
  const F32x16 own = load(dy);
  for (int64_t k = 0; k < n; ++k) {
    float* column = dx + columns[k] * kSparseRows;
    store(column, add(load(column), mul(broadcast(values[k]), own)));
  }
}

void sparse_row_gradient(float dy, const float* x, const int32_t* columns, int64_t n, float* gradient) {
  float* __restrict to = gradient;
  if (columns == nullptr) {
    for (int64_t k = 0; k < n; ++k) to[k] += dy * x[k];
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] += dy * x[columns[k]];
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
