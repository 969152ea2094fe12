// SPDX-License-Identifier: Apache-2.0
// Merged panels: out = round((w + scaling * b a) * out_scale), one panel of 32 output columns at a time, so that
// whoever builds a merged layer may stop between two of them. The product b a is a gemm with a's columns as rows and b
// as the weight (native bf16 dots where there are any), in blocks of the inner dimension whose sums stay in L1; sum,
// scale and rounding are one pass over them. The inner loops are plain code over 32 columns that the compiler turns
// into vectors.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlockRows = 256;  // of the inner dimension; even
constexpr int kCols = static_cast<int>(kPanelCols);

// Per column, so that the sums need no reordering to be vectors.
struct ColumnSums {
  float change[kCols] = {}, rounding[kCols] = {};
};

template <class To, class From>
LK_INLINE To bits_as(From value) {
  To to;
  __builtin_memcpy(&to, &value, sizeof to);
  return to;
}

// To the nearest bf16, ties to even: its bits in the upper half of the result. Finite values only: the caller looks at
// the sums.
LK_INLINE uint32_t round_bits(float exact) {
  const uint32_t u = bits_as<uint32_t>(exact);
  return (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
}

// Steps [0, num_steps) of a bf16 panel: pairs of inner rows. delta: [2 * num_steps][32], unscaled.
void add_bf16(const uint32_t* w, const float* delta, float scaling, const float* scale, int64_t num_steps,
              uint32_t* out, ColumnSums& sums) {
  for (int64_t step = 0; step < num_steps; ++step) {
    const float* d = delta + step * 2 * kCols;
    for (int c = 0; c < kCols; ++c) {
      const float lo = bits_as<float>(w[c] << 16), hi = bits_as<float>(w[c] & 0xffff0000u);
      const float exact_lo = (lo + scaling * d[c]) * scale[c], exact_hi = (hi + scaling * d[kCols + c]) * scale[c];
      const uint32_t out_lo = round_bits(exact_lo), out_hi = round_bits(exact_hi);
      out[c] = out_lo >> 16 | out_hi;
      const float change_lo = exact_lo - lo, change_hi = exact_hi - hi;
      const float error_lo = bits_as<float>(out_lo) - exact_lo, error_hi = bits_as<float>(out_hi) - exact_hi;
      sums.change[c] += change_lo * change_lo + change_hi * change_hi;
      sums.rounding[c] += error_lo * error_lo + error_hi * error_hi;
    }
    w += kCols;
    out += kCols;
  }
}

// The same for f32: rounding is that of the sum itself (the error term of a two-sum, Knuth 4.2.2).
void add_f32(const float* w, const float* delta, float scaling, const float* scale, int64_t num_steps, float* out,
             ColumnSums& sums) {
  for (int64_t step = 0; step < num_steps; ++step) {
    for (int c = 0; c < kCols; ++c) {
      const float d = scaling * delta[c], sum = w[c] + d, back = sum - w[c];
      const float error = ((w[c] - (sum - back)) + (d - back)) * scale[c];
      out[c] = sum * scale[c];
      const float change = out[c] - w[c];
      sums.change[c] += change * change;
      sums.rounding[c] += error * error;
    }
    w += kCols;
    delta += kCols;
    out += kCols;
  }
}

// Steps from byte `at` of the panels on, of base and copy alike, from page to page.
void add_block(const MergeArgs& args, const float* delta, const float* scale, int64_t at, int64_t num_steps,
               ColumnSums& sums) {
  while (num_steps > 0) {
    const PanelBytes from = panel_bytes_at(args.w, at), to = panel_bytes_at(args.out, at);
    const int64_t steps = min64(num_steps, min64(from.size, to.size) / kPanelStepBytes);
    auto* out = const_cast<std::byte*>(to.data);  // a merged copy is its builder's to write
    switch (args.w.format) {
      case WeightFormat::kBF16Panels:
        add_bf16(reinterpret_cast<const uint32_t*>(from.data), delta, args.scaling, scale, steps,
                 reinterpret_cast<uint32_t*>(out), sums);
        break;
      case WeightFormat::kF32Panels:
        add_f32(reinterpret_cast<const float*>(from.data), delta, args.scaling, scale, steps,
                reinterpret_cast<float*>(out), sums);
        break;
    }
    delta += steps * traits_of(args.w.format).per_step * kCols;
    at += steps * kPanelStepBytes;
    num_steps -= steps;
  }
}

}  // namespace

void merge_panel(const MergeArgs& args, int64_t panel, ThreadPool& one_thread, MergeSums* total) {
  const FormatTraits format = traits_of(args.w.format);
  const int64_t k = args.w.k, rank = args.b.k, per_step = format.per_step, elem = dtype_bytes(format.act);
  const int64_t panel_bytes = packed_weight_bytes(args.w.format, kPanelCols, k);
  const int64_t at = (args.out_begin / kPanelCols + panel) * panel_bytes;
  const int64_t num_cols = min64(kPanelCols, args.b.n - panel * kPanelCols);
  PackedWeight b = args.b;
  b.n = num_cols;
  b.data = static_cast<const char*>(args.b.data) + panel * packed_weight_bytes(args.b.format, kPanelCols, rank);
  alignas(64) float delta[kBlockRows * kPanelCols];
  alignas(64) float scale[kPanelCols];
  for (int64_t c = 0; c < kPanelCols; ++c)
    scale[c] = args.out_scale != nullptr && c < num_cols ? args.out_scale[panel * kPanelCols + c] : 1.0f;
  if (num_cols < kPanelCols) __builtin_memset(delta, 0, sizeof delta);  // the columns that gemm does not write
  for (int64_t row = 0; row < k; row += kBlockRows) {
    const int64_t rows = min64(kBlockRows, k - row), steps = ceil_div(rows, per_step);
    gemm({.x = static_cast<const char*>(args.a_transposed) + row * rank * elem,
          .act = format.act,
          .x_stride = rank,
          .w = b,
          .y = delta,
          .y_stride = kPanelCols,
          .num_rows = rows},
         one_thread);
    if (rows < steps * per_step) __builtin_memset(delta + rows * kPanelCols, 0, kPanelCols * sizeof(float));  // odd k
    ColumnSums sums;  // in f32 over one block, then in f64
    add_block(args, delta, scale, at + row / per_step * kPanelStepBytes, steps, sums);
    for (int64_t c = 0; c < num_cols; ++c) {
      total->change += static_cast<double>(sums.change[c]);
      total->rounding += static_cast<double>(sums.rounding[c]);
    }
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
