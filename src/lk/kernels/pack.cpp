// SPDX-License-Identifier: Apache-2.0
// Packs weights into panels of 32 output columns: a transposition of 32 rows, done in blocks of one cache line per row
// so that both sides stay in L1. Plain code: it runs once, at load, and is bound by memory.
#include <algorithm>
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

// The bytes of a matrix that its owner is writing.
std::byte* writable(PanelBytes bytes) { return const_cast<std::byte*>(bytes.data); }

// Units of one panel go to byte `at` of dst on, whole steps at a time, from page to page.
void store_steps(const uint32_t* units, int64_t num_steps, int64_t at, const PackedWeight& dst) {
  while (num_steps > 0) {
    const PanelBytes place = panel_bytes_at(dst, at);
    const int64_t steps = std::min(num_steps, place.size / kPanelStepBytes);
    std::memcpy(writable(place), units, static_cast<size_t>(steps * kPanelStepBytes));
    units += steps * kPanelCols;
    at += steps * kPanelStepBytes;
    num_steps -= steps;
  }
}

// One panel, from byte `at` of dst on: rows [row, row + num_rows) of w, num_rows <= 32. Unit is what moves as a whole:
// a pair of bf16 or an f32.
template <class Src, class Dst>
void pack_panel(const Src* w, int64_t k, int64_t num_rows, int64_t at, const PackedWeight& dst) {
  constexpr int64_t kPerUnit = static_cast<int64_t>(4 / sizeof(Dst));
  constexpr int64_t kUnits = kBlockCols / kPerUnit;
  alignas(64) Dst block[kPanelCols][kBlockCols] = {};
  for (int64_t col = 0; col < k; col += kBlockCols) {
    const int64_t cols = k - col < kBlockCols ? k - col : kBlockCols;
    for (int64_t row = 0; row < num_rows; ++row) {
      load_block(w + row * k + col, cols, block[row]);
      for (int64_t i = cols; i < kBlockCols; ++i) block[row][i] = Dst{};
    }
    uint32_t units[kPanelCols][kUnits], steps[kUnits][kPanelCols];
    std::memcpy(units, block, sizeof units);
    const int64_t num_steps = (cols + kPerUnit - 1) / kPerUnit;
    for (int64_t step = 0; step < num_steps; ++step)
      for (int64_t row = 0; row < kPanelCols; ++row) steps[step][row] = units[row][step];
    store_steps(steps[0], num_steps, at + col / kPerUnit * kPanelStepBytes, dst);
  }
}

}  // namespace

PanelBytes panel_bytes_at(const PackedWeight& w, int64_t at) {
  const auto* data = static_cast<const std::byte*>(w.data);
  if (!w.pages) return {data + at, w.total_bytes() - at};
  const int64_t page = (w.begin + at) / w.page_bytes, offset = (w.begin + at) % w.page_bytes;
  return {data + w.pages[page] * w.page_bytes + offset, w.page_bytes - offset};
}

void pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, ThreadPool& pool) {
  LK_CHECK(w.num_dims() == 2 && w.dim(1) == dst.k && out_begin % kPanelCols == 0 && out_begin + w.dim(0) <= dst.n,
           "shape {} at column {} of [{}, {}]", w.shape_string(), out_begin, dst.n, dst.k);
  const int64_t n = w.dim(0), k = w.dim(1), first = out_begin / kPanelCols;
  pool.for_each((n + kPanelCols - 1) / kPanelCols, [&](int64_t panel) {
    const int64_t row = panel * kPanelCols, num_rows = n - row < kPanelCols ? n - row : kPanelCols;
    const int64_t at = (first + panel) * dst.panel_bytes();
    dispatch_dtype(w.dtype(), [&](auto type) {
      using Src = typename decltype(type)::type;
      const Src* src = static_cast<const Src*>(w.raw()) + row * k;
      switch (dst.format) {
        case WeightFormat::kBF16Panels:
          return pack_panel<Src, uint16_t>(src, k, num_rows, at, dst);
        case WeightFormat::kF32Panels:
          return pack_panel<Src, float>(src, k, num_rows, at, dst);
      }
    });
  });
}

void copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size) {
  while (size > 0) {
    const PanelBytes source = panel_bytes_at(from, at), target = panel_bytes_at(to, at);
    const int64_t bytes = std::min({size, source.size, target.size});
    std::memcpy(writable(target), source.data, static_cast<size_t>(bytes));
    at += bytes;
    size -= bytes;
  }
}

float unpack_weight_at(const PackedWeight& w, int64_t out, int64_t in) {
  LK_DCHECK(out < w.n && in < w.k);
  const int64_t per_step = traits_of(w.format).per_step;
  const int64_t step = out / kPanelCols * w.panel_bytes() + in / per_step * kPanelStepBytes;
  const std::byte* at = panel_bytes_at(w, step).data + out % kPanelCols * 4;
  switch (w.format) {
    case WeightFormat::kBF16Panels:
      return static_cast<float>(reinterpret_cast<const bf16*>(at)[in % 2]);
    case WeightFormat::kF32Panels:
      return *reinterpret_cast<const float*>(at);
  }
  check_failed(__FILE__, __LINE__, "format", "not a WeightFormat");
}

}  // namespace lk
