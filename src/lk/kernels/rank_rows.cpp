// SPDX-License-Identifier: Apache-2.0
// Rank rows of an adapter from host memory into their places in the pool. Plain code: it is bound by memory and runs
// beside the kernels.
#include <algorithm>

#include "lk/kernels/cpu.h"

namespace lk {
namespace {

// out[j] = src[j * stride].
template <class S, class D>
void copy_strided(const S* src, int64_t stride, D* out, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    if constexpr (std::is_same_v<S, D>)
      out[j] = src[j * stride];
    else
      out[j] = D(static_cast<float>(src[j * stride]));
  }
}

// Calls f(row, first column, end column, place) for the parts of the chunks that lie in columns [begin, end).
template <class F>
void for_each_chunk(const RankRowsArgs& a, int64_t begin, int64_t end, const F& f) {
  const int64_t elem = dtype_bytes(a.dtype);
  for (int64_t row = 0; row < a.rows.num_rows; ++row)
    for (int64_t c = 0; c < a.rows.num_chunks; ++c) {
      const int64_t chunk_begin = c * a.rows.chunk_cols,
                    chunk_end = std::min(a.rows.width, (c + 1) * a.rows.chunk_cols);
      const int64_t first = std::max(chunk_begin, begin), last = std::min(chunk_end, end);
      if (first >= last) continue;
      f(row, first, last, a.base + a.rows.row_offsets[row * a.rows.num_chunks + c] + (first - chunk_begin) * elem);
    }
}

}  // namespace

void store_rank_rows(const RankRowsArgs& a) {
  const int64_t source_elem = dtype_bytes(a.source.dtype());
  if (!a.columns) {
    for_each_chunk(a, 0, a.rows.width, [&](int64_t row, int64_t first, int64_t last, std::byte* place) {
      convert(static_cast<const std::byte*>(a.source.row(row)) + first * source_elem, a.source.dtype(), place, a.dtype,
              last - first);
    });
    return;
  }
  // In blocks of columns, so that the strided reads of all rows stay in the cache.
  constexpr int64_t kBlock = 256;
  for (int64_t block = 0; block < a.rows.width; block += kBlock)
    for_each_chunk(a, block, block + kBlock, [&](int64_t row, int64_t first, int64_t last, std::byte* place) {
      dispatch_dtype(a.source.dtype(), [&](auto source_type) {
        dispatch_dtype(a.dtype, [&](auto type) {
          using S = typename decltype(source_type)::type;
          using D = typename decltype(type)::type;
          const int64_t stride = a.source.dim(1);
          copy_strided(a.source.data<S>() + first * stride + row, stride, reinterpret_cast<D*>(place), last - first);
        });
      });
    });
}

}  // namespace lk
