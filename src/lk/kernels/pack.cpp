// SPDX-License-Identifier: Apache-2.0
// Packs weights into panels of 32 output columns: a transposition of 32 rows, done in blocks of one cache line per row
// so that both sides stay in L1. Plain code: it runs once, at load, and is bound by memory.
#include <bit>
#include <cstring>

#include "lk/kernels/cpu.h"

namespace lk {
namespace {

// Columns of w handled at once: 64 bytes of bf16 per row.
constexpr int64_t kBlockCols = 32;

// f16 to f32 without branches: the exponent is moved by a product, which also normalises subnormals; infinities
// and NaN come out of the f32 range and get their exponent back.
float f16_to_f32(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1.0p112f;
  const uint32_t fixed = std::bit_cast<uint32_t>(scaled) | (magnitude >= 0x0f800000u ? 0x7f800000u : 0u);
  return std::bit_cast<float>(fixed | static_cast<uint32_t>(bits & 0x8000u) << 16);
}

void load_block(const bf16* src, int64_t n, uint16_t* dst) { std::memcpy(dst, src, static_cast<size_t>(n) * 2); }
void round_block(const float* src, int64_t n, uint16_t* dst) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(src[i]);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40;
    dst[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}
void load_block(const float* src, int64_t n, uint16_t* dst) { round_block(src, n, dst); }
void load_block(const float* src, int64_t n, float* dst) { std::memcpy(dst, src, static_cast<size_t>(n) * 4); }
void load_block(const bf16* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = std::bit_cast<float>(static_cast<uint32_t>(src[i].bits) << 16);
}
void load_block(const f16* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = f16_to_f32(src[i].bits);
}
void load_block(const f16* src, int64_t n, uint16_t* dst) {
  float wide[kBlockCols];
  load_block(src, n, wide);
  round_block(wide, n, dst);
}

// One panel: rows [row, row + num_rows) of w, num_rows <= 32. Unit is what moves as a whole: a pair of bf16 or an f32.
template <class Src, class Dst>
void pack_panel(const Src* w, int64_t k, int64_t num_rows, std::byte* panel) {
  constexpr int64_t kPerUnit = static_cast<int64_t>(4 / sizeof(Dst));
  constexpr int64_t kUnits = kBlockCols / kPerUnit;
  alignas(64) Dst block[kPanelCols][kBlockCols] = {};
  for (int64_t col = 0; col < k; col += kBlockCols) {
    const int64_t cols = k - col < kBlockCols ? k - col : kBlockCols;
    for (int64_t row = 0; row < num_rows; ++row) {
      load_block(w + row * k + col, cols, block[row]);
      for (int64_t i = cols; i < kBlockCols; ++i) block[row][i] = Dst{};
    }
    uint32_t units[kPanelCols][kUnits];
    std::memcpy(units, block, sizeof units);
    const int64_t num_units = (cols + kPerUnit - 1) / kPerUnit;
    auto* out = reinterpret_cast<uint32_t*>(panel) + col / kPerUnit * kPanelCols;
    for (int64_t unit = 0; unit < num_units; ++unit)
      for (int64_t row = 0; row < kPanelCols; ++row) out[unit * kPanelCols + row] = units[row][unit];
  }
}

}  // namespace

void pack_weight(const TensorView& w, WeightFormat format, int64_t out_begin, void* dst, ThreadPool& pool) {
  LK_CHECK(w.num_dims() == 2 && out_begin % kPanelCols == 0, "shape {}, column {}", w.shape_string(), out_begin);
  const int64_t n = w.dim(0), k = w.dim(1);
  const int64_t panel_bytes = packed_weight_bytes(format, kPanelCols, k);
  auto* first = static_cast<std::byte*>(dst) + out_begin / kPanelCols * panel_bytes;
  pool.for_each((n + kPanelCols - 1) / kPanelCols, [&](int64_t panel) {
    const int64_t row = panel * kPanelCols, num_rows = n - row < kPanelCols ? n - row : kPanelCols;
    dispatch_dtype(w.dtype(), [&](auto type) {
      using Src = typename decltype(type)::type;
      const Src* src = static_cast<const Src*>(w.raw()) + row * k;
      if (format == WeightFormat::kBF16Panels)
        pack_panel<Src, uint16_t>(src, k, num_rows, first + panel * panel_bytes);
      else
        pack_panel<Src, float>(src, k, num_rows, first + panel * panel_bytes);
    });
  });
}

float unpack_weight_at(const PackedWeight& w, int64_t out, int64_t in) {
  LK_DCHECK(out < w.n && in < w.k);
  const int64_t panel = out / kPanelCols, col = out % kPanelCols;
  if (w.format == WeightFormat::kF32Panels)
    return static_cast<const float*>(w.data)[(panel * w.k + in) * kPanelCols + col];
  const int64_t pair = panel * ((w.k + 1) / 2) + in / 2;
  return static_cast<float>(static_cast<const bf16*>(w.data)[(pair * kPanelCols + col) * 2 + in % 2]);
}

}  // namespace lk
