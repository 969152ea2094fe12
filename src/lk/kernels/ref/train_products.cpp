// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/ref/elements.h"
#include "lk/kernels/train.h"

namespace lk::ref {

void gemm_transposed(const GemmTransposedArgs& a) {
  for (int64_t row = 0; row < a.num_rows; ++row) {
    for (int64_t in = 0; in < a.w.k; ++in) {
      float& y = a.y[row * a.y_stride + in];
      double sum = a.add ? static_cast<double>(y) : 0;
      for (int64_t out = 0; out < a.w.n; ++out)
        sum += get(a.x, a.act, row * a.x_stride + out) * static_cast<double>(unpack_weight_at(a.w, out, in));
      y = static_cast<float>(sum);
    }
  }
}

void outer(const OuterProduct& p) {
  for (int64_t r = 0; r < p.rank; ++r) {
    for (int64_t j = 0; j < p.width; ++j) {
      float& gradient = p.gradient[r * p.gradient_stride + j];
      auto sum = static_cast<double>(gradient);
      for (int64_t row = 0; row < p.num_rows; ++row)
        sum += static_cast<double>(p.c[row * p.c_stride + r]) * get(p.x, p.x_dtype, row * p.x_stride + j);
      gradient = static_cast<float>(sum);
    }
  }
}

}  // namespace lk::ref
