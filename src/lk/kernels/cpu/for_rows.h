// SPDX-License-Identifier: Apache-2.0
// How row-wise kernels are shared out to the threads.
#pragma once

#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Below this many elements waking other threads costs more than the work.
constexpr int64_t kSerialElements = 16384;

// Calls f(row, col_begin, col_end) over rows x columns; columns are cut when there are few rows (multiple of 16).
template <class F>
LK_INLINE void for_tiles(ThreadPool& pool, int64_t num_rows, int64_t num_cols, const F& f) {
  if (num_rows * num_cols <= kSerialElements) {
    for (int64_t row = 0; row < num_rows; ++row) f(row, int64_t{0}, num_cols);
    return;
  }
  constexpr int64_t kCols = 4096;
  const int64_t blocks = ceil_div(num_cols, kCols);
  parallel(pool, num_rows * blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t col = item % blocks * kCols;
      f(item / blocks, col, min64(col + kCols, num_cols));
    }
  });
}

template <class F>
LK_INLINE void for_rows(ThreadPool& pool, int64_t num_rows, int64_t num_cols, const F& f) {
  if (num_rows * num_cols <= kSerialElements) {
    for (int64_t row = 0; row < num_rows; ++row) f(row);
    return;
  }
  parallel(pool, num_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

}  // namespace
}  // namespace lk::LK_ISA_NAMESPACE
