// SPDX-License-Identifier: Apache-2.0
// Scattered columns of a product, summed in f64: y[m, columns[j]] = sum_k x[m, k] w[j, k]. Each sum is one chain over k
// in ascending order; products of two f32 are exact in f64. The inner loops are plain code over the 32 columns of a
// panel that the compiler turns into vectors.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int kCols = static_cast<int>(kPanelCols);

LK_INLINE float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
LK_INLINE double element(const uint16_t* x, int64_t i) {
  return static_cast<double>(float_of_bits(static_cast<uint32_t>(x[i]) << 16));
}
LK_INLINE double element(const float* x, int64_t i) { return static_cast<double>(x[i]); }

// sum[c] += x[k] w[k, c] over a panel of pairs of bf16.
template <class X>
void add_bf16_panel(const uint32_t* w, const X* x, int64_t k, double* sum) {
  int64_t i = 0;
  for (; i + 2 <= k; i += 2, w += kCols) {
    const double first = element(x, i), second = element(x, i + 1);
    for (int c = 0; c < kCols; ++c) {
      const double lo = static_cast<double>(float_of_bits(w[c] << 16)) * first;
      const double hi = static_cast<double>(float_of_bits(w[c] & 0xffff0000u)) * second;
      sum[c] = (sum[c] + lo) + hi;
    }
  }
  if (i == k) return;
  const double last = element(x, i);
  for (int c = 0; c < kCols; ++c) sum[c] += static_cast<double>(float_of_bits(w[c] << 16)) * last;
}
template <class X>
void add_f32_panel(const float* w, const X* x, int64_t k, double* sum) {
  for (int64_t i = 0; i < k; ++i, w += kCols) {
    const double xi = element(x, i);
    for (int c = 0; c < kCols; ++c) sum[c] += static_cast<double>(w[c]) * xi;
  }
}

// The sums of one panel for one row of x. A panel in pages is taken piece by piece, in whole steps.
template <class X>
void sum_panel(const PackedWeight& w, int64_t panel, const X* x, double* sum) {
  const int64_t per_step = traits_of(w.format).per_step, end = (panel + 1) * w.panel_bytes();
  int64_t i = 0;
  for (int64_t at = panel * w.panel_bytes(); at < end;) {
    const PanelBytes piece = panel_bytes_at(w, at);
    const int64_t bytes = min64(piece.size, end - at);
    const int64_t count = min64(bytes / kPanelStepBytes * per_step, w.k - i);
    switch (w.format) {
      case WeightFormat::kBF16Panels:
        add_bf16_panel(reinterpret_cast<const uint32_t*>(piece.data), x + i, count, sum);
        break;
      case WeightFormat::kF32Panels:
        add_f32_panel(reinterpret_cast<const float*>(piece.data), x + i, count, sum);
        break;
    }
    at += bytes;
    i += count;
  }
}

template <class X>
void run(const GemmColumnsArgs& args, ThreadPool& pool) {
  parallel(pool, ceil_div(args.w.n, kPanelCols), 16, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t num_cols = min64(kPanelCols, args.w.n - panel * kPanelCols);
      const int32_t* columns = args.columns + panel * kPanelCols;
      for (int64_t row = 0; row < args.num_rows; ++row) {
        double sum[kCols] = {};
        sum_panel(args.w, panel, static_cast<const X*>(args.x) + row * args.x_stride, sum);
        for (int64_t c = 0; c < num_cols; ++c) args.y[row * args.y_stride + columns[c]] = static_cast<float>(sum[c]);
      }
    }
  });
}

}  // namespace

void gemm_columns(const GemmColumnsArgs& args, ThreadPool& pool) {
  if (args.num_rows == 0 || args.w.n == 0) return;
  if (args.act == DType::kBF16)
    run<uint16_t>(args, pool);
  else
    run<float>(args, pool);
}

}  // namespace lk::LK_ISA_NAMESPACE
