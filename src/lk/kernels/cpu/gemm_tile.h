// SPDX-License-Identifier: Apache-2.0
// The register tile of the products with packed panels (args.h, WeightFormat): rows of x, whose inner dimension lies
// together, times 16 or 32 columns of a panel. An output is one accumulator that takes the inner dimension in ascending
// order, pairs for bf16; where the inner dimension is cut, it rests in y, which is exact. So neither the tile's height
// nor a cut changes a bit. gemm, gemm_transposed and block_attention are made of it.
#pragma once

#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Register tile: kVectorRows x kTileVecs accumulators, leaving room for the weights (for emulated bf16: both halves).
constexpr int kVectorRows = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 4 : 2;
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

// kRows rows against 16 kTileVecs columns of a panel; k elements of x. With `resume` the sums go on from those in y.
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
#define LK_TILE(rows) tile_fn<P, rows <= kVectorRows ? rows : 1>
      LK_TILE(3),    LK_TILE(4),    LK_TILE(5),  LK_TILE(6),  LK_TILE(7),
      LK_TILE(8),    LK_TILE(9),    LK_TILE(10), LK_TILE(11), LK_TILE(12),
#undef LK_TILE
  };
  return kTable[rows - 1];
}

}  // namespace
}  // namespace lk::LK_ISA_NAMESPACE

#if defined(__AMX_BF16__)
#include "lk/kernels/cpu/gemm_tile_amx.h"
#endif

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kHalves = 2 / kTileVecs;  // passes over a panel's columns per tile

template <class P>
struct TileRows {
  const typename P::X* data;
  int64_t stride;
};

// What a format's products are made of: the most rows of a tile, and the elements of the inner dimension that belong
// together. A product whose inner dimension is cut must be cut at multiples of kInner. kManyPanels: a tile's rows
// should meet several panels while they are in L1.
template <class P>
struct Tiles {
  static constexpr int kMaxRows = kVectorRows;
  static constexpr int64_t kInner = P::kPerStep;
  static constexpr bool kManyPanels = false;
  // What a thread holds while it multiplies; hold() before each tile of another height.
  struct Registers {
    void hold(int64_t) {}
  };
  LK_INLINE void multiply(int64_t rows, const typename P::X* x, int64_t x_stride, int64_t k, const char* w, float* y,
                          int64_t y_stride, int64_t num_cols, Prefetch ahead, bool resume) {
    tile_for<P>(rows)(x, x_stride, k, w, y, y_stride, num_cols, ahead, resume);
  }
  // Rows of x that meet several panels, as they are multiplied fastest: where they are, or brought together in `room`
  // for kMaxRows gathered_stride(k) elements.
  static constexpr int64_t gathered_stride(int64_t) { return 0; }
  LK_INLINE TileRows<P> gather(int64_t, const typename P::X* x, int64_t x_stride, int64_t, typename P::X*) {
    return {x, x_stride};
  }
};
#if defined(__AMX_BF16__)
template <>
struct Tiles<Bf16Panels> {
  static constexpr int kMaxRows = kAmxRows;
  static constexpr int64_t kInner = kTileInner;
  static constexpr bool kManyPanels = true;
  using Registers = AmxRegisters;
  LK_INLINE void multiply(int64_t rows, const uint16_t* x, int64_t x_stride, int64_t k, const char* w, float* y,
                          int64_t y_stride, int64_t num_cols, Prefetch ahead, bool resume) {
    amx_tile(rows, x, x_stride, k, w, y, y_stride, num_cols, ahead, resume);
  }
  static constexpr int64_t gathered_stride(int64_t k) { return amx_gathered_stride(k); }
  LK_INLINE TileRows<Bf16Panels> gather(int64_t rows, const uint16_t* x, int64_t x_stride, int64_t k, uint16_t* room) {
    return {amx_gather(rows, x, x_stride, k, room), amx_gathered_stride(k)};
  }
};
#endif

// Tiles of nearly equal height that num_rows rows are cut into.
template <class P>
int64_t num_row_tiles(int64_t num_rows, int64_t x_stride) {
  // Rows a multiple of 4 KiB apart share the sets of an 8-way L1, and 12 of them evict each other.
  const bool aliased = x_stride * static_cast<int64_t>(sizeof(typename P::X)) % 4096 == 0;
  const int64_t most = Tiles<P>::kMaxRows;
  return ceil_div(num_rows, aliased && most == kVectorRows ? min64(most, 11) : most);
}

// f(tile, its first row, its rows) for num_tiles tiles that together are num_rows rows.
template <class F>
LK_INLINE void for_row_tiles(int64_t num_rows, int64_t num_tiles, const F& f) {
  int64_t row = 0;
  for (int64_t t = 0; t < num_tiles; ++t) {
    const int64_t rows = num_rows / num_tiles + (t < num_rows % num_tiles ? 1 : 0);
    f(t, row, rows);
    row += rows;
  }
}

// All rows against one panel that is in cache already.
template <class P>
void multiply_panel(const typename P::X* x, int64_t x_stride, int64_t num_rows, int64_t k, const char* panel, float* y,
                    int64_t y_stride, int64_t num_cols, bool resume) {
  typename Tiles<P>::Registers registers;
  for_row_tiles(num_rows, num_row_tiles<P>(num_rows, x_stride), [&](int64_t, int64_t row, int64_t rows) {
    registers.hold(rows);
    for (int64_t half = 0; half < kHalves && half * 16 < num_cols; ++half)
      Tiles<P>::multiply(rows, x + row * x_stride, x_stride, k, panel + 64 * half, y + row * y_stride + 16 * half,
                         y_stride, num_cols - 16 * half, {0, nullptr, 0}, resume);
  });
}

}  // namespace
}  // namespace lk::LK_ISA_NAMESPACE
