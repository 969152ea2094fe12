// SPDX-License-Identifier: Apache-2.0
// gradient[r, j] += sum_m c[m, r] x[m, j]: gradients of rank rows.
//
// Threads own columns. A thread takes rows in blocks; it widens kTileCols columns of a block into L1, where they lie
// together, and register tiles of rank rows go over them, on from what is in the gradient. An element is one fma chain
// over the rows in ascending order, whatever the tiles, the blocks and the cut into calls.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int kMaxRanks = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 2 : 1;
constexpr int kVecs = 2;
constexpr int64_t kTileCols = 16 * kVecs;
constexpr int64_t kBlockRows = 128;
constexpr int64_t kMaxCols = 512;  // of a thread's block

// x: [num_rows][kTileCols].
template <int kRanks>
void add_tile(const float* c, int64_t c_stride, const float* x, int64_t num_rows, float* gradient,
              int64_t gradient_stride, int64_t num_cols) {
  F32x16 acc[kRanks][kVecs];
  const auto cols = [&](int vec) { return min64(max64(num_cols - 16 * vec, 0), 16); };
  LK_UNROLL
  for (int r = 0; r < kRanks; ++r) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec)
      acc[r][vec] = load_partial(gradient + r * gradient_stride + 16 * vec, cols(vec));
  }
  for (int64_t m = 0; m < num_rows; ++m) {
    F32x16 xv[kVecs];
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) xv[vec] = load(x + m * kTileCols + 16 * vec);
    LK_UNROLL
    for (int r = 0; r < kRanks; ++r) {
      const F32x16 factor = broadcast(c[m * c_stride + r]);
      LK_UNROLL
      for (int vec = 0; vec < kVecs; ++vec) acc[r][vec] = fma(factor, xv[vec], acc[r][vec]);
    }
  }
  LK_UNROLL
  for (int r = 0; r < kRanks; ++r) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec)
      store_partial(gradient + r * gradient_stride + 16 * vec, acc[r][vec], cols(vec));
  }
}

using TileFn = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, int64_t);
TileFn tile_for(int64_t ranks) {
#define LK_FN(ranks) add_tile<ranks <= kMaxRanks ? ranks : kMaxRanks>
  static constexpr TileFn kTable[] = {LK_FN(1), LK_FN(2), LK_FN(3), LK_FN(4),  LK_FN(5),  LK_FN(6),
                                      LK_FN(7), LK_FN(8), LK_FN(9), LK_FN(10), LK_FN(11), LK_FN(12)};
#undef LK_FN
  return kTable[ranks - 1];
}

// Columns [begin, end) of a product.
template <class T>
void add_columns(const OuterProduct& p, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  const int64_t tiles = ceil_div(p.rank, kMaxRanks);
  alignas(64) float block[kBlockRows * kTileCols];
  for (int64_t row = 0; row < p.num_rows; row += kBlockRows) {
    const int64_t rows = min64(kBlockRows, p.num_rows - row);
    for (int64_t col = begin; col < end; col += kTileCols) {
      const int64_t cols = min64(kTileCols, end - col);
      for (int64_t m = 0; m < rows; ++m) {
        const T* from = x + (row + m) * p.x_stride + col;
        // Of the tile after this one: in L2, because rows a multiple of 4 KiB apart share the sets of L1.
        if (col + kTileCols < end)
          prefetch_l2(from + kTileCols);
        else if (row + kBlockRows + m < p.num_rows)
          prefetch_l2(from + kBlockRows * p.x_stride + begin - col);
        for (int64_t i = 0; i < kTileCols; i += 16)
          store(block + m * kTileCols + i,
                cols >= i + 16 ? load_as_f32(from + i) : load_as_f32(from + min64(i, cols), max64(cols - i, 0)));
      }
      int64_t r = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t ranks = p.rank / tiles + (t < p.rank % tiles ? 1 : 0);
        tile_for(ranks)(p.c + row * p.c_stride + r, p.c_stride, block, rows, p.gradient + r * p.gradient_stride + col,
                        p.gradient_stride, cols);
        r += ranks;
      }
    }
  }
}

}  // namespace

void outer(std::span<const OuterProduct> products, ThreadPool& pool) {
  const OuterProduct* all = products.data();
  const auto count = static_cast<int64_t>(products.size());
  int64_t width = 0;
  for (int64_t i = 0; i < count; ++i) width += all[i].width;
  const int64_t share = width / (4 * pool_size(pool)) / kTileCols * kTileCols;
  const int64_t cols = min64(max64(share, kTileCols), kMaxCols);
  const auto num_blocks = [&](const OuterProduct& p) {
    return p.num_rows == 0 || p.rank == 0 ? 0 : ceil_div(p.width, cols);
  };
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += num_blocks(all[i]);
  parallel(pool, total, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int64_t i = 0; i < count && first < end; ++i) {
      const OuterProduct& p = all[i];
      const int64_t blocks = num_blocks(p);
      for (int64_t item = max64(begin, first); item < min64(end, first + blocks); ++item) {
        const int64_t col = (item - first) * cols, col_end = min64(col + cols, p.width);
        if (p.x_dtype == DType::kBF16)
          add_columns<uint16_t>(p, col, col_end);
        else
          add_columns<float>(p, col, col_end);
      }
      first += blocks;
    }
  });
}

}  // namespace lk::LK_ISA_NAMESPACE
