// SPDX-License-Identifier: Apache-2.0
// y = x w^T over packed panels of 32 output columns.
//
// Row determinism: an output element is one accumulator lane that starts at zero and takes the inner dimension in
// ascending order (pairs for bf16), whatever the tile height. The tiling is free; the arithmetic is not.
//
// A thread takes a run of panels; per panel it walks the rows in tiles of nearly equal height, so that the panel comes
// from memory once and stays in L2 for the remaining tiles, while those tiles prefetch the next panel. Where a panel
// passes from one page to the next (PackedWeight), a tile stops, leaves its sums in y and takes them up again, which is
// exact: the arithmetic is that of a matrix in one block.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Register tile: kMaxRows x kTileVecs accumulators, leaving room for the weights (for emulated bf16: both halves).
constexpr int kMaxRows = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 4 : 2;
constexpr int kTileVecs = kNumVectors >= 32 ? 2 : 1;
constexpr int64_t kStepBytes = kPanelStepBytes;

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

// With `resume` the sums go on from those in y.
template <class P, int kRows>
LK_INLINE void tile(const typename P::X* x, int64_t x_stride, int64_t k, const char* w, float* y, int64_t y_stride,
                    int64_t num_cols, Prefetch ahead, bool resume) {
  F32x16 acc[kRows][kTileVecs];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kTileVecs; ++vec) {
      const int64_t cols = num_cols - 16 * vec;
      const float* from = y + row * y_stride + 16 * vec;
      acc[row][vec] = !resume || cols <= 0 ? zero() : cols >= 16 ? load(from) : load_partial(from, cols);
    }
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
using TileFn = void (*)(const typename P::X*, int64_t, int64_t, const char*, float*, int64_t, int64_t, Prefetch, bool);
template <class P, int kRows>
void tile_fn(const typename P::X* x, int64_t x_stride, int64_t k, const char* w, float* y, int64_t y_stride,
             int64_t num_cols, Prefetch ahead, bool resume) {
  tile<P, kRows>(x, x_stride, k, w, y, y_stride, num_cols, ahead, resume);
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

// Steps of a panel that are read, and whose prefetches lie, without passing from one page to another.
struct Stretch {
  const char* w;
  int64_t num_steps;
  Prefetch ahead;
};
// Those from byte `at` of the panels on, `num_steps` at most, with prefetches `near_bytes` ahead and at byte `far`.
Stretch stretch_at(const PackedWeight& weight, int64_t total_bytes, int64_t at, int64_t num_steps, int64_t near_bytes,
                   int64_t far, int lines) {
  const PanelBytes own = panel_bytes_at(weight, at);
  num_steps = min64(num_steps, own.size / kStepBytes);
  // A place to prefetch from. It moves by `group_bytes` with each group, and the stretch ends where its page does.
  const auto place = [&](int64_t byte, int64_t group_bytes) {
    const PanelBytes bytes = panel_bytes_at(weight, min64(byte, total_bytes - kStepBytes));  // past the end: anything
    if (group_bytes > 0 && byte + bytes.size < total_bytes)
      num_steps = min64(num_steps, ceil_div(bytes.size, group_bytes) * kGroup);
    return reinterpret_cast<const char*>(bytes.data);
  };
  const auto* w = reinterpret_cast<const char*>(own.data);
  const char* const near_place = place(at + near_bytes, kGroup * kStepBytes);
  const char* const far_place = place(far, 64 * lines);
  return {w, num_steps, {near_place - w, far_place, lines}};
}

template <class P>
void run(const GemmArgs& args, ThreadPool& pool) {
  const auto* x = static_cast<const typename P::X*>(args.x);
  const int64_t n = args.w.n, k = args.w.k, num_rows = args.num_rows;
  const int64_t panel_bytes = ceil_div(k, P::kPerStep) * kStepBytes;
  const int64_t num_panels = ceil_div(n, kPanelCols), total_bytes = num_panels * panel_bytes;
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
      const int64_t first_byte = panel * panel_bytes, first_col = panel * kPanelCols;
      int64_t row = 0;
      for (int64_t t = 0; t < num_tiles; ++t) {
        const int64_t rows = num_rows / num_tiles + (t < num_rows % num_tiles ? 1 : 0);
        int64_t near_bytes = kAheadBytes, far = first_byte;
        int far_lines = 0;
        if (num_tiles > 1) {
          near_bytes = kNearBytes;
          far += panel_bytes + t * pass_bytes;
          if (t * pass_bytes < panel_bytes && panel + 1 < num_panels) far_lines = lines;
        } else if (rows > 4) {
          near_bytes = kAheadBytes / 4;
          far += 2 * kAheadBytes;
          far_lines = kGroupLines;
        }
        const TileFn<P> fn = tile_for<P>(rows);
        for (int64_t done = 0; done < k;) {
          const int64_t at = first_byte + done / P::kPerStep * kStepBytes;
          const Stretch stretch =
              stretch_at(args.w, total_bytes, at, ceil_div(k - done, P::kPerStep), near_bytes, far, far_lines);
          const int64_t part = min64(k - done, stretch.num_steps * P::kPerStep);
          for (int64_t half = 0; half < kHalves; ++half) {
            const int64_t col = first_col + half * 16;
            if (col >= n) break;
            fn(x + row * args.x_stride + done, args.x_stride, part, stretch.w + 64 * half,
               args.y + row * args.y_stride + col, args.y_stride, n - col, stretch.ahead, done > 0);
          }
          done += part;
          far += stretch.num_steps / kGroup * 64 * far_lines;
        }
        row += rows;
      }
    }
  });
}

}  // namespace

void gemm(const GemmArgs& args, ThreadPool& pool) {
  if (args.num_rows == 0 || args.w.n == 0) return;
  switch (args.w.format) {
    case WeightFormat::kBF16Panels:
      return run<Bf16Panels>(args, pool);
    case WeightFormat::kF32Panels:
      return run<F32Panels>(args, pool);
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
