// SPDX-License-Identifier: Apache-2.0
// Rows go through in groups of 16 that stand side by side, so that one value of S meets 16 of them at once: a sparse
// row has no neighbours to make vectors of.
#include "lk/kernels/sparse.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

namespace lk {
namespace {

constexpr int64_t kRows = kSparseRows;

template <class F>
void with_act(DType type, const F& f) {
  if (type == DType::kF32)
    f(std::type_identity<float>{});
  else
    f(std::type_identity<bf16>{});
}

// to [width, kRows] = rows [first, first + count) of x; rows that are not there are 0.
template <class T>
void gather_columns(const T* x, int64_t stride, int64_t count, int64_t width, float* to) {
  for (int64_t j = 0; j < width; ++j)
    for (int64_t m = 0; m < kRows; ++m) to[j * kRows + m] = m < count ? static_cast<float>(x[m * stride + j]) : 0.0f;
}

// f(first row, number of rows) of each group.
template <class F>
void for_groups(int64_t num_rows, ThreadPool& pool, const F& f) {
  pool.for_each((num_rows + kRows - 1) / kRows,
                [&](int64_t group) { f(group * kRows, std::min(kRows, num_rows - group * kRows)); });
}

}  // namespace

void sparse_product(const SparseProductArgs& a, const SparseRowKernels& row, ThreadPool& pool) {
  with_act(a.act, [&]<class T>(std::type_identity<T>) {
    for_groups(a.num_rows, pool, [&](int64_t first, int64_t count) {
      std::vector<float> x(static_cast<size_t>(a.s.in * kRows));
      gather_columns(static_cast<const T*>(a.x) + first * a.x_stride, a.x_stride, count, a.s.in, x.data());
      for (int64_t o = 0; o < a.s.out; ++o) {
        const int64_t begin = a.s.row_begins[o], n = a.s.row_begins[o + 1] - begin;
        if (n == 0) continue;
        std::array<float, kRows> sum;
        row.product(a.values + begin, a.s.columns + begin, n, x.data(), sum.data());
        for (int64_t m = 0; m < count; ++m) a.y[(first + m) * a.y_stride + o] += sum[static_cast<size_t>(m)];
      }
    });
  });
}

void sparse_input_gradient(const SparseInputGradientArgs& a, const SparseRowKernels& row, ThreadPool& pool) {
  with_act(a.act, [&]<class T>(std::type_identity<T>) {
    for_groups(a.num_rows, pool, [&](int64_t first, int64_t count) {
      std::vector<float> dy(static_cast<size_t>(a.s.out * kRows)), dx(static_cast<size_t>(a.s.in * kRows));
      gather_columns(static_cast<const T*>(a.dy) + first * a.dy_stride, a.dy_stride, count, a.s.out, dy.data());
      for (int64_t o = 0; o < a.s.out; ++o) {
        const int64_t begin = a.s.row_begins[o], n = a.s.row_begins[o + 1] - begin;
        row.input_gradient(a.values + begin, a.s.columns + begin, n, dy.data() + o * kRows, dx.data());
      }
      for (int64_t i = 0; i < a.s.in; ++i)
        for (int64_t m = 0; m < count; ++m)
          a.dx[(first + m) * a.dx_stride + i] += dx[static_cast<size_t>(i * kRows + m)];
    });
  });
}

// Threads own rows of S; each takes the rows of the batch in order.
void sparse_gradient(const SparseGradientArgs& a, const SparseRowKernels& kernels, ThreadPool& pool) {
  with_act(a.act, [&]<class T>(std::type_identity<T>) {
    std::vector<float> x(static_cast<size_t>(a.num_rows * a.s.in));
    pool.for_each(a.num_rows, [&](int64_t m) {
      const T* from = static_cast<const T*>(a.x) + m * a.x_stride;
      for (int64_t i = 0; i < a.s.in; ++i) x[static_cast<size_t>(m * a.s.in + i)] = static_cast<float>(from[i]);
    });
    constexpr int64_t kOut = 8;
    pool.for_each((a.s.out + kOut - 1) / kOut, [&](int64_t item) {
      for (int64_t o = item * kOut; o < std::min((item + 1) * kOut, a.s.out); ++o) {
        const int64_t begin = a.s.row_begins[o], n = a.s.row_begins[o + 1] - begin;
        float* gradient = a.gradient + begin;
        // Of a whole row the columns are all of them, in order.
        const int32_t* columns = n == a.s.in ? nullptr : a.s.columns + begin;
        for (int64_t m = 0; m < a.num_rows; ++m) {
          const float d = static_cast<float>(static_cast<const T*>(a.dy)[m * a.dy_stride + o]);
          kernels.gradient(d, x.data() + m * a.s.in, columns, n, gradient);
        }
      }
    });
  });
}

void proximal_gradient(const ProximalArgs& a, ThreadPool& pool) {
  constexpr int64_t kBlock = int64_t{1} << 16;
  pool.for_each((a.n + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, a.n); ++i)
      a.gradient[i] += a.factor * (a.x[i] - a.anchor[i]);
  });
}

}  // namespace lk
