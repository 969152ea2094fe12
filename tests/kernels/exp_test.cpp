// SPDX-License-Identifier: Apache-2.0
// exp has no entry of its own in the kernel table; swiglu in f32 shows it: silu(g) u = g u / (1 + exp(-g)).
#include "kernels/kernel_test_util.h"

namespace lk::testing {
namespace {

constexpr double kExpError = 2e-7;                  // relative; docs/design/numerics.md
constexpr double kRoundings = 3 * 0x1p-24;          // of 1 + e, the quotient and the product with u
constexpr float kLeast = -87.0f, kLargest = 30.0f;  // e^87 is still a float; beyond 30 the quotient is g to all digits

class ExpTest : public KernelTest {};

TEST_P(ExpTest, HoldsItsRelativeErrorOverItsWholeRange) {
  constexpr int64_t kValues = 1 << 16;
  std::vector<float> x(2 * kValues, 1.0f), y(kValues);  // gates, then u = 1
  for (int64_t i = 0; i < kValues; ++i)
    x[static_cast<size_t>(i)] = kLeast + (kLargest - kLeast) * (static_cast<float>(i) + 0.5f) / kValues;
  kernels().swiglu({x.data(), 2 * kValues, kValues, y.data(), DType::kF32, kValues, 1, kValues}, pool());
  double worst = 0;
  float worst_gate = 0;
  for (size_t i = 0; i < kValues; ++i) {
    const double gate = static_cast<double>(x[i]), want = gate / (1 + std::exp(-gate));
    const double error = std::fabs(static_cast<double>(y[i]) / want - 1);
    if (error > worst) worst = error, worst_gate = x[i];
  }
  EXPECT_LE(worst, kExpError + kRoundings) << "at " << worst_gate;
  EXPECT_GT(worst, 0);
}

LK_INSTANTIATE_KERNEL_TESTS(ExpTest);

}  // namespace
}  // namespace lk::testing
