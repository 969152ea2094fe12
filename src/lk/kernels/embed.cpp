// SPDX-License-Identifier: Apache-2.0
// Rows of embedding tables, and rows gathered from a matrix: conversions and copies. Plain code: they are bound by
// memory.
#include <algorithm>
#include <cstring>

#include "lk/kernels/cpu.h"

namespace lk {
namespace {

// Below this many elements waking other threads costs more than the work.
constexpr int64_t kSerialElements = 16384;
// Columns of one work item: few rows still keep all threads busy where a delta makes them long.
constexpr int64_t kCols = 512;

// y[d] += scaling * sum_k b[d, k] a[k, token] for d in [begin, end), end - begin <= kCols. The sums take k in ascending
// order, in f64.
void add_delta(const EmbeddingDelta& delta, int64_t token, int64_t begin, int64_t end, float* y) {
  constexpr int64_t kRanks = 64;  // whose column of a is gathered at a time
  double sum[kCols] = {};
  const int64_t rank = delta.a.dim(0), vocab = delta.a.dim(1);
  for (int64_t first = 0; first < rank; first += kRanks) {
    const int64_t ranks = std::min(kRanks, rank - first);
    float column[kRanks];
    dispatch_dtype(delta.a.dtype(), [&](auto type) {
      const auto* a = delta.a.data<typename decltype(type)::type>() + first * vocab + token;
      for (int64_t k = 0; k < ranks; ++k) column[k] = static_cast<float>(a[k * vocab]);
    });
    dispatch_dtype(delta.b.dtype(), [&](auto type) {
      const auto* b = delta.b.data<typename decltype(type)::type>() + first;
      for (int64_t d = begin; d < end; ++d)
        for (int64_t k = 0; k < ranks; ++k)
          sum[d - begin] += static_cast<double>(static_cast<float>(b[d * rank + k])) * static_cast<double>(column[k]);
    });
  }
  for (int64_t d = begin; d < end; ++d) y[d] += static_cast<float>(delta.scaling * sum[d - begin]);
}

template <class F>
void for_blocks(ThreadPool& pool, bool serial, int64_t num_rows, int64_t num_cols, const F& f) {
  const int64_t blocks = (num_cols + kCols - 1) / kCols;
  const auto item = [&](int64_t i) {
    const int64_t col = i % blocks * kCols;
    f(i / blocks, col, std::min(col + kCols, num_cols));
  };
  if (!serial) return pool.for_each(num_rows * blocks, item);
  for (int64_t i = 0; i < num_rows * blocks; ++i) item(i);
}

}  // namespace

void embed(const EmbedArgs& a, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(a.rows.size());
  const bool has_delta = std::ranges::any_of(a.rows, [](const EmbedRow& row) { return row.delta != nullptr; });
  for_blocks(pool, !has_delta && num_rows * a.dim <= kSerialElements, num_rows, a.dim,
             [&](int64_t row, int64_t begin, int64_t end) {
               const EmbedRow& from = a.rows[static_cast<size_t>(row)];
               float* y = a.y + row * a.y_stride;
               convert(static_cast<const std::byte*>(from.source) + begin * dtype_bytes(from.dtype), from.dtype,
                       y + begin, DType::kF32, end - begin);
               if (from.delta) add_delta(*from.delta, from.token, begin, end, y);
             });
}

void gather_rows(const GatherRowsArgs& a, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(a.rows.size());
  for_blocks(pool, num_rows * a.dim <= kSerialElements, num_rows, a.dim, [&](int64_t row, int64_t begin, int64_t end) {
    const float* x = a.x + a.rows[static_cast<size_t>(row)] * a.x_stride;
    std::memcpy(a.y + row * a.y_stride + begin, x + begin, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

}  // namespace lk
