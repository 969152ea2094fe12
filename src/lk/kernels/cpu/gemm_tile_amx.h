// SPDX-License-Identifier: Apache-2.0
// The tile of the products with bf16 panels on AMX's tile registers: up to 32 rows of x times 32 columns of a panel.
// Included by gemm_tile.h only, where the compiler may use AMX.
//
// A tile instruction takes kTileInner elements of the inner dimension at once: the even ones are one fma chain from
// zero, the odd ones another, and their sum is added to the output. So an output's arithmetic depends on where these
// blocks begin: always at multiples of kTileInner from the beginning of the product, or of its shard. Callers that cut
// the inner dimension cut it there.
#pragma once

#include <immintrin.h>

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileInner = 32;
constexpr int kAmxRows = 32;

// What LDTILECFG reads (Intel SDM, volume 1, 18.3).
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
// Registers 0..3: the sums, two of 16 columns for either half of the rows. 4, 5: rows of x. 6, 7: the panel's columns.
struct TileConfigs {
  TileConfig of[kAmxRows + 1];
  constexpr TileConfigs() : of() {
    for (int rows = 1; rows <= kAmxRows; ++rows) {
      const auto low = static_cast<uint8_t>(rows < 16 ? rows : 16), high = static_cast<uint8_t>(rows - low);
      const uint8_t heights[8] = {low, low, high, high, low, high, 16, 16};
      for (int reg = 0; reg < 8; ++reg) {
        of[rows].rows[reg] = heights[reg];
        of[rows].row_bytes[reg] = heights[reg] > 0 ? 64 : 0;
      }
    }
  }
};
constexpr TileConfigs kTileConfigs;

// The calling thread's tile registers while it multiplies tiles of one height after the other. Setting them up and
// giving them back takes as long as two hundred of their instructions; while they are held, each switch of the thread
// saves and restores 8 KiB.
class AmxRegisters {
 public:
  AmxRegisters() = default;
  AmxRegisters(const AmxRegisters&) = delete;
  ~AmxRegisters() {
    if (rows_ > 0) _tile_release();
  }
  void hold(int64_t rows) {
    if (rows == rows_) return;
    _tile_loadconfig(&kTileConfigs.of[rows]);
    rows_ = rows;
  }

 private:
  int64_t rows_ = 0;
};

// The compiler does not know that the tile instructions read memory.
LK_INLINE void memory_is_read() { asm volatile("" ::: "memory"); }

// One block of the inner dimension.
template <bool kHigh>
LK_INLINE void amx_block(const uint16_t* x, int64_t x_bytes, const char* w) {
  _tile_loadd(6, w, kPanelStepBytes);
  _tile_loadd(4, x, x_bytes);
  _tile_loadd(7, w + 64, kPanelStepBytes);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kHigh) _tile_loadd(5, reinterpret_cast<const char*>(x) + 16 * x_bytes, x_bytes);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kHigh) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kHigh>
LK_INLINE void amx_product(int64_t rows, const uint16_t* x, int64_t x_stride, int64_t k, const char* w, float* y,
                           int64_t y_stride, Prefetch ahead, bool resume) {
  const int64_t x_bytes = x_stride * 2, y_bytes = y_stride * 4;
  char* const low = reinterpret_cast<char*>(y);
  char* const high = low + 16 * y_bytes;
  if (resume) {
    _tile_loadd(0, low, y_bytes);
    _tile_loadd(1, low + 64, y_bytes);
    if constexpr (kHigh) {
      _tile_loadd(2, high, y_bytes);
      _tile_loadd(3, high + 64, y_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kHigh) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  constexpr int64_t kBlockBytes = kTileInner / 2 * kPanelStepBytes;
  for (; k >= kTileInner; k -= kTileInner, x += kTileInner, w += kBlockBytes) {
    if (ahead.near_bytes > 0)
      for (int64_t byte = 0; byte < kBlockBytes; byte += 64) prefetch(w + ahead.near_bytes + byte);
    const int lines = ahead.lines * static_cast<int>(kTileInner / 2 / kGroup);
    for (int line = 0; line < lines; ++line) prefetch_l2(ahead.next + 64 * line);
    ahead.next += 64 * lines;
    amx_block<kHigh>(x, x_bytes, w);
  }
  if (k > 0) {  // the rest of the inner dimension, filled up with zeros
    alignas(64) uint16_t rest_x[kAmxRows * kTileInner] = {};
    alignas(64) char rest_w[kBlockBytes] = {};
    for (int64_t row = 0; row < rows; ++row)
      __builtin_memcpy(rest_x + row * kTileInner, x + row * x_stride, static_cast<size_t>(k) * 2);
    __builtin_memcpy(rest_w, w, static_cast<size_t>((k + 1) / 2 * kPanelStepBytes));
    memory_is_read();
    amx_block<kHigh>(rest_x, kTileInner * 2, rest_w);
  }
  _tile_stored(0, low, y_bytes);
  _tile_stored(1, low + 64, y_bytes);
  if constexpr (kHigh) {
    _tile_stored(2, high, y_bytes);
    _tile_stored(3, high + 64, y_bytes);
  }
}

// The tile instruction at its best, for bench; returns the number of floating-point operations.
LK_INLINE double amx_probe(int64_t iterations) {
  _tile_loadconfig(&kTileConfigs.of[kAmxRows]);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(iterations) * 4 * 2 * 16 * 16 * kTileInner;
}

// As tile_fn<Bf16Panels, rows>. Requires: AmxRegisters hold `rows`.
void amx_tile(int64_t rows, const uint16_t* x, int64_t x_stride, int64_t k, const char* w, float* y, int64_t y_stride,
              int64_t num_cols, Prefetch ahead, bool resume) {
  alignas(64) float part[kAmxRows * kPanelCols];  // of an output with fewer columns than a panel
  float* sums = y;
  int64_t sums_stride = y_stride;
  const bool narrow = num_cols < kPanelCols;
  if (narrow) {
    sums = part;
    sums_stride = kPanelCols;
    if (resume)
      for (int64_t row = 0; row < rows; ++row)
        __builtin_memcpy(part + row * kPanelCols, y + row * y_stride, static_cast<size_t>(num_cols) * 4);
  }
  memory_is_read();
  if (rows > 16)
    amx_product<true>(rows, x, x_stride, k, w, sums, sums_stride, ahead, resume);
  else
    amx_product<false>(rows, x, x_stride, k, w, sums, sums_stride, ahead, resume);
  if (narrow)
    for (int64_t row = 0; row < rows; ++row)
      __builtin_memcpy(y + row * y_stride, part + row * kPanelCols, static_cast<size_t>(num_cols) * 4);
}

// Rows of x lie far apart, often a multiple of 4 KiB, which puts them into the same sets of L1. Where they meet several
// panels they are brought together first, an odd number of lines apart.
constexpr int64_t amx_gathered_stride(int64_t k) { return (k / (2 * kTileInner) + 1) * (2 * kTileInner) + kTileInner; }
const uint16_t* amx_gather(int64_t rows, const uint16_t* x, int64_t x_stride, int64_t k, uint16_t* room) {
  for (int64_t row = 0; row < rows; ++row)
    __builtin_memcpy(room + row * amx_gathered_stride(k), x + row * x_stride, static_cast<size_t>(k) * 2);
  return room;
}

}  // namespace
}  // namespace lk::LK_ISA_NAMESPACE
