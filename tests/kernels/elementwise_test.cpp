// SPDX-License-Identifier: Apache-2.0
#include "kernels/kernel_test_util.h"

namespace lk::testing {
namespace {

class ElementwiseTest : public KernelTest {
 protected:
  // Runs `op` of the kernels and of ref into guarded outputs of act dtype and compares.
  template <class RunFn, class RefFn>
  void compare(Op op, int64_t n, const std::string& what, RunFn run, RefFn run_ref) {
    const auto check = [&](auto type) {
      using T = typename decltype(type)::type;
      Guarded<T> got(n), want(n);
      run(got.data());
      run_ref(want.data());
      got.expect_intact(what);
      expect_close(as_floats(got.values()), as_floats(want.values()), tolerance(op, act()), what);
    };
    if (act() == DType::kBF16)
      check(std::type_identity<bf16>{});
    else
      check(std::type_identity<float>{});
  }
};

TEST_P(ElementwiseTest, RmsNormMatchesRef) {
  for (int64_t rows : {0, 1, 3, 65}) {
    for (int64_t dim : {1, 15, 64, 100, 2048}) {
      const auto x = random_values<float>(rows * dim, 5, 3.0), weight = random_values<float>(dim, 6);
      RmsNormArgs args{x.data(), dim, weight.data(), nullptr, act(), dim, rows, dim, 1e-5f};
      const auto with_y = [&](void* y) {
        args.y = y;
        return args;
      };
      compare(
          Op::kRmsNorm, rows * dim, fmt::format("rows {} dim {}", rows, dim),
          [&](void* y) { kernels().rms_norm(with_y(y), pool()); }, [&](void* y) { ref::rms_norm(with_y(y)); });
    }
  }
}

TEST_P(ElementwiseTest, RmsNormWorksInPlaceAndPerRow) {
  constexpr int64_t kRows = 9, kDim = 2100;
  const auto x = random_values<float>(kRows * kDim, 5), weight = random_values<float>(kDim, 6);
  std::vector<float> y = x, alone(kDim);
  kernels().rms_norm({y.data(), kDim, weight.data(), y.data(), DType::kF32, kDim, kRows, kDim, 1e-6f}, pool());
  for (int64_t row = 0; row < kRows; ++row) {
    kernels().rms_norm({x.data() + row * kDim, kDim, weight.data(), alone.data(), DType::kF32, kDim, 1, kDim, 1e-6f},
                       pool());
    ASSERT_TRUE(same_bits(alone.data(), y.data() + row * kDim, kDim));
  }
}

TEST_P(ElementwiseTest, SwigluMatchesRefAlsoForExtremeGates) {
  for (int64_t rows : {0, 1, 7}) {
    for (int64_t dim : {1, 17, 96, 5632}) {
      auto x = random_values<float>(rows * (2 * dim + 5), 5, 8.0);
      if (dim > 16 && rows > 0) {
        x[0] = 200.0f;
        x[1] = -200.0f;
        x[2] = 0.0f;
      }
      SwigluArgs args{x.data(), 2 * dim + 5, dim + 5, nullptr, act(), dim, rows, dim};
      const auto with_y = [&](void* y) {
        args.y = y;
        return args;
      };
      compare(
          Op::kSwiglu, rows * dim, fmt::format("rows {} dim {}", rows, dim),
          [&](void* y) { kernels().swiglu(with_y(y), pool()); }, [&](void* y) { ref::swiglu(with_y(y)); });
    }
  }
}

TEST_P(ElementwiseTest, RopeMatchesRef) {
  for (int64_t rows : {0, 1, 33}) {
    for (int64_t head_dim : {2, 8, 16, 64, 80, 128}) {
      constexpr int64_t kHeads = 3;
      const int64_t width = kHeads * head_dim;
      const auto cos = random_values<float>(rows * head_dim / 2, 1), sin = random_values<float>(rows * head_dim / 2, 2);
      const auto x = random_values<float>(rows * width, 3);
      Guarded<float> got(rows * width), want(rows * width);
      std::copy(x.begin(), x.end(), got.data());
      std::copy(x.begin(), x.end(), want.data());
      kernels().rope({got.data(), width, rows, kHeads, head_dim, cos.data(), sin.data()}, pool());
      ref::rope({want.data(), width, rows, kHeads, head_dim, cos.data(), sin.data()});
      got.expect_intact("rope");
      expect_close(got.values(), want.values(), tolerance(Op::kRope, DType::kF32), "rope");
    }
  }
}

TEST_P(ElementwiseTest, AddAndAddBias) {
  for (int64_t rows : {0, 1, 5}) {
    for (int64_t n : {1, 31, 64, 9000}) {
      const auto x = random_values<float>(rows * n, 1), bias = random_values<float>(n, 2);
      Guarded<float> y(rows * n);
      y.fill(1.0f);
      kernels().add(y.data(), n, x.data(), n, rows, n, pool());
      kernels().add_bias(y.data(), n, bias.data(), rows, n, pool());
      y.expect_intact("add");
      for (int64_t i = 0; i < rows * n; ++i)
        ASSERT_EQ(y.data()[i], (1.0f + x[static_cast<size_t>(i)]) + bias[static_cast<size_t>(i % n)]);
    }
  }
}

LK_INSTANTIATE_KERNEL_TESTS(ElementwiseTest);

TEST(CpuIsa, NamesRoundTrip) {
  for (const CpuIsa isa : kCpuIsas) EXPECT_EQ(parse_cpu_isa(to_string(isa)), isa);
  for (const CpuIsa isa : supported_cpu_isas()) EXPECT_EQ(cpu_kernels(isa).isa, isa);
  EXPECT_EQ(parse_cpu_isa("mmx"), std::nullopt);
}

}  // namespace
}  // namespace lk::testing
