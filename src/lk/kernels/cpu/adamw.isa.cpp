// SPDX-License-Identifier: Apache-2.0
// AdamW: element by element in f64, never contracted, so the same bits on every instruction set; the compiler makes it
// vectors of whatever width there is.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 8192;

void step(const AdamwArgs& a, int64_t begin, int64_t end) {
  const double keep = 1 - a.rate * a.decay, rate = a.rate / a.correction1;
  const double root2 = 1 / __builtin_sqrt(a.correction2);
  const double beta1 = a.beta1, beta2 = a.beta2, eps = a.eps, scale = a.grad_scale;
  float* __restrict param = a.param;
  float* __restrict am = a.m;
  float* __restrict av = a.v;
  const float* __restrict gradient = a.gradient;
  for (int64_t i = begin; i < end; ++i) {
    const double g = static_cast<double>(gradient[i]) * scale;
    const double m = beta1 * static_cast<double>(am[i]) + (1 - beta1) * g;
    const double v = beta2 * static_cast<double>(av[i]) + (1 - beta2) * g * g;
    param[i] = static_cast<float>(keep * static_cast<double>(param[i]) - rate * m / (__builtin_sqrt(v) * root2 + eps));
    am[i] = static_cast<float>(m);
    av[i] = static_cast<float>(v);
  }
}

}  // namespace

void adamw(const AdamwArgs& args, ThreadPool& pool) {
  if (args.n <= 2 * kBlock) return step(args, 0, args.n);  // waking other threads would cost more
  parallel(pool, ceil_div(args.n, kBlock), 8,
           [&](int64_t begin, int64_t end) { step(args, begin * kBlock, min64(end * kBlock, args.n)); });
}

}  // namespace lk::LK_ISA_NAMESPACE
