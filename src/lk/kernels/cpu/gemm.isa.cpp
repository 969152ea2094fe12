// SPDX-License-Identifier: Apache-2.0
// y = x w^T over packed panels of 32 output columns.
//
// Row determinism: an output element is one accumulator lane that starts at zero and takes the inner dimension in
// ascending order (pairs for bf16), whatever the tile height. The tiling is free; the arithmetic is not.
//
// A thread takes a run of panels; per panel it walks the rows in tiles of nearly equal height, so that the panel comes
// from memory once and stays in L2 for the remaining tiles, while those tiles prefetch the next panel.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Register tile: kMaxRows x kTileVecs accumulators, leaving room for the weights (for emulated bf16: both halves).
constexpr int kMaxRows = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 4 : 2;
constexpr int kTileVecs = kNumVectors >= 32 ? 2 : 1;
constexpr int64_t kStepBytes = 128;  // of a panel per step of the inner dimension, in either format

struct Bf16Panels {
  using X = uint16_t;
  using W = Pairs;
  static constexpr int64_t kPerStep = 2;
  LK_INLINE W load_w(const char* p) { return load_pairs(reinterpret_cast<const uint16_t*>(p)); }
  LK_INLINE Pairs load_x(const X* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return broadcast_pair(pair);
  }
  LK_INLINE Pairs load_last_x(const X* p) { return broadcast_pair(*p); }  // odd k
  LK_INLINE F32x16 mac(F32x16 acc, W w, Pairs x) { return dot_bf16(acc, w, x); }
};

struct F32Panels {
  using X = float;
  using W = F32x16;
  static constexpr int64_t kPerStep = 1;
  LK_INLINE W load_w(const char* p) { return load(reinterpret_cast<const float*>(p)); }
  LK_INLINE F32x16 load_x(const X* p) { return broadcast(*p); }
  LK_INLINE F32x16 load_last_x(const X* p) { return broadcast(*p); }
  LK_INLINE F32x16 mac(F32x16 acc, W w, F32x16 x) { return fma(w, x, acc); }
};

// Cache lines to prefetch for each group of kGroup steps.
constexpr int64_t kGroup = 4;
struct Prefetch {
  int64_t near_bytes;  // into L1, so far ahead in the panel
  const char* next;    // into L2: this many lines from here on
  int lines;
};

template <class P, int kRows>
LK_INLINE void tile(const typename P::X* x, int64_t x_stride, int64_t k, const char* w, float* y, int64_t y_stride,
                    int64_t num_cols, Prefetch ahead) {
  F32x16 acc[kRows][kTileVecs];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kTileVecs; ++vec) acc[row][vec] = zero();
  }
  const auto step = [&](auto load_x) __attribute__((always_inline)) {
    typename P::W wv[kTileVecs];
    LK_UNROLL
    for (int vec = 0; vec < kTileVecs; ++vec) wv[vec] = P::load_w(w + 64 * vec);
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const auto xv = load_x(x + row * x_stride);
      LK_UNROLL
      for (int vec = 0; vec < kTileVecs; ++vec) acc[row][vec] = P::mac(acc[row][vec], wv[vec], xv);
    }
    w += kStepBytes;
    x += P::kPerStep;
  };
  const auto full = [](const typename P::X* p) __attribute__((always_inline)) { return P::load_x(p); };
  const int64_t num_steps = k / P::kPerStep;
  int64_t i = 0;
  for (; i + kGroup <= num_steps; i += kGroup) {
    LK_UNROLL
    for (int64_t byte = 0; byte < kGroup * kStepBytes; byte += 64) prefetch(w + ahead.near_bytes + byte);
    for (int line = 0; line < ahead.lines; ++line) prefetch_l2(ahead.next + 64 * line);
    ahead.next += 64 * ahead.lines;
    LK_UNROLL
    for (int64_t s = 0; s < kGroup; ++s) step(full);
  }
  for (; i < num_steps; ++i) step(full);
  if (k % P::kPerStep != 0)
    step([](const typename P::X* p) __attribute__((always_inline)) { return P::load_last_x(p); });

  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kTileVecs; ++vec) {
      const int64_t cols = num_cols - 16 * vec;
      float* out = y + row * y_stride + 16 * vec;
      if (cols >= 16)
        store(out, acc[row][vec]);
      else if (cols > 0)
        store_partial(out, acc[row][vec], cols);
    }
  }
}

template <class P>
using TileFn = void (*)(const typename P::X*, int64_t, int64_t, const char*, float*, int64_t, int64_t, Prefetch);
template <class P, int kRows>
void tile_fn(const typename P::X* x, int64_t x_stride, int64_t k, const char* w, float* y, int64_t y_stride,
             int64_t num_cols, Prefetch ahead) {
  tile<P, kRows>(x, x_stride, k, w, y, y_stride, num_cols, ahead);
}
template <class P>
TileFn<P> tile_for(int64_t rows) {
  static constexpr TileFn<P> kTable[] = {
      tile_fn<P, 1>, tile_fn<P, 2>,
#define LK_TILE(rows) tile_fn<P, rows <= kMaxRows ? rows : 1>
      LK_TILE(3),    LK_TILE(4),    LK_TILE(5),  LK_TILE(6),  LK_TILE(7),
      LK_TILE(8),    LK_TILE(9),    LK_TILE(10), LK_TILE(11), LK_TILE(12),
#undef LK_TILE
  };
  return kTable[rows - 1];
}

template <class P>
void run(const GemmArgs& args, ThreadPool& pool) {
  const auto* x = static_cast<const typename P::X*>(args.x);
  const int64_t n = args.w.n, k = args.w.k, num_rows = args.num_rows;
  const int64_t panel_bytes = ceil_div(k, P::kPerStep) * kStepBytes;
  const int64_t num_panels = ceil_div(n, kPanelCols);
  // Rows a multiple of 4 KiB apart share the sets of an 8-way L1, and 12 of them evict each other.
  const bool aliased = args.x_stride * static_cast<int64_t>(sizeof(typename P::X)) % 4096 == 0;
  const int64_t num_tiles = ceil_div(num_rows, aliased ? min64(kMaxRows, 11) : kMaxRows);
  constexpr int64_t kHalves = 2 / kTileVecs;  // passes over a panel's columns per tile
  constexpr int kGroupLines = kGroup * kStepBytes / 64;
  // One pass: run ahead in the same stream; into L2 first when the product takes longer than L1 keeps lines in flight.
  // More passes: each fetches its share of the next panel.
  constexpr int64_t kAheadBytes = 4096, kNearBytes = 2048;
  const int lines = static_cast<int>(ceil_div(kGroupLines, num_tiles));
  const int64_t pass_bytes = lines * 64 * (ceil_div(k, P::kPerStep) / kGroup);

  parallel(pool, num_panels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const char* w = static_cast<const char*>(args.w.data) + panel * panel_bytes;
      const int64_t first_col = panel * kPanelCols;
      int64_t row = 0;
      for (int64_t t = 0; t < num_tiles; ++t) {
        const int64_t rows = num_rows / num_tiles + (t < num_rows % num_tiles ? 1 : 0);
        Prefetch ahead = {kAheadBytes, w, 0};
        if (rows > 4) ahead = {kAheadBytes / 4, w + 2 * kAheadBytes, kGroupLines};
        if (num_tiles > 1) {
          ahead = {kNearBytes, w + panel_bytes + t * pass_bytes, lines};
          if (t * pass_bytes >= panel_bytes || panel + 1 == num_panels) ahead.lines = 0;
        }
        const TileFn<P> fn = tile_for<P>(rows);
        for (int64_t half = 0; half < kHalves; ++half) {
          const int64_t col = first_col + half * 16;
          if (col >= n) break;
          fn(x + row * args.x_stride, args.x_stride, k, w + 64 * half, args.y + row * args.y_stride + col,
             args.y_stride, n - col, ahead);
        }
        row += rows;
      }
    }
  });
}

}  // namespace

void gemm(const GemmArgs& args, ThreadPool& pool) {
  if (args.num_rows == 0 || args.w.n == 0) return;
  if (args.w.format == WeightFormat::kBF16Panels)
    run<Bf16Panels>(args, pool);
  else
    run<F32Panels>(args, pool);
}

}  // namespace lk::LK_ISA_NAMESPACE
