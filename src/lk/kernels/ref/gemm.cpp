// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/cpu.h"

namespace lk::ref {

void gemm(const GemmArgs& args) {
  const bool is_bf16 = args.act == DType::kBF16;
  for (int64_t row = 0; row < args.num_rows; ++row) {
    for (int64_t out = 0; out < args.w.n; ++out) {
      double sum = 0;
      for (int64_t in = 0; in < args.w.k; ++in) {
        const int64_t at = row * args.x_stride + in;
        const double x = is_bf16 ? static_cast<double>(static_cast<float>(static_cast<const bf16*>(args.x)[at]))
                                 : static_cast<double>(static_cast<const float*>(args.x)[at]);
        sum += x * static_cast<double>(unpack_weight_at(args.w, out, in));
      }
      args.y[row * args.y_stride + out] = static_cast<float>(sum);
    }
  }
}

}  // namespace lk::ref
