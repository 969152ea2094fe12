// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lk/kernels/cpu.h"

namespace lk::ref {
namespace {

void put(void* y, DType dtype, int64_t index, double value) {
  if (dtype == DType::kF32)
    static_cast<float*>(y)[index] = static_cast<float>(value);
  else
    static_cast<bf16*>(y)[index] = bf16(static_cast<float>(value));
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const float* x = args.x + row * args.x_stride;
    double sum = 0;
    for (int64_t i = 0; i < args.dim; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    const double rms = std::sqrt(sum / static_cast<double>(args.dim) + static_cast<double>(args.eps));
    for (int64_t i = 0; i < args.dim; ++i)
      put(args.y, args.y_dtype, row * args.y_stride + i,
          static_cast<double>(x[i]) / rms * static_cast<double>(args.weight[i]));
  }
}

void rope(const RopeArgs& args) {
  const int64_t half = args.head_dim / 2;
  for (int64_t row = 0; row < args.num_rows; ++row) {
    for (int64_t head = 0; head < args.num_heads; ++head) {
      float* x = args.x + row * args.x_stride + head * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const double c = static_cast<double>(args.cos[row * half + i]),
                     s = static_cast<double>(args.sin[row * half + i]);
        const double lo = static_cast<double>(x[i]), hi = static_cast<double>(x[i + half]);
        x[i] = static_cast<float>(lo * c - hi * s);
        x[i + half] = static_cast<float>(hi * c + lo * s);
      }
    }
  }
}

void swiglu(const SwigluArgs& args) {
  for (int64_t row = 0; row < args.num_rows; ++row) {
    for (int64_t i = 0; i < args.dim; ++i) {
      const double gate = static_cast<double>(args.x[row * args.x_stride + i]);
      const double up = static_cast<double>(args.x[row * args.x_stride + args.up_offset + i]);
      put(args.y, args.y_dtype, row * args.y_stride + i, gate / (1.0 + std::exp(-gate)) * up);
    }
  }
}

}  // namespace lk::ref
