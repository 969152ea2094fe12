// SPDX-License-Identifier: Apache-2.0
#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {
namespace {

class GemmTransposedTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
  // A packed weight [n, k] of T.
  template <class T>
  struct Weight {
    Buffer memory;
    PackedWeight packed;
    Weight(int64_t n, int64_t k, ThreadPool& pool) {
      const WeightFormat format = weight_format_of(dtype_of<T>());
      memory = Buffer(packed_weight_bytes(format, n, k));
      packed = {format, n, k, memory.data()};
      const std::vector<T> w = random_values<T>(n * k, 7);
      pack_weight(TensorView(w.data(), dtype_of<T>(), {n, k}), 0, packed, pool);
    }
  };
  void run(const GemmTransposedArgs& args, ThreadPool& pool) {
    train_kernels(std::get<0>(GetParam())).gemm_transposed(args, pool);
  }
};

TEST_P(GemmTransposedTest, MatchesRefOnRaggedShapes) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    // The last ones are cut along n, into more features than a thread turns at once.
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                                       {5, 3},
                                                                       {16, 8},
                                                                       {31, 33},
                                                                       {32, 64},
                                                                       {33, 65},
                                                                       {48, 7},
                                                                       {64, 130},
                                                                       {97, 257},
                                                                       {2051, 33},
                                                                       {4100, 40}}) {
      const Weight<T> w(n, k, pool());
      for (int64_t rows : {0, 1, 2, 3, 12, 13, 40}) {
        if (n > 1000 && rows > 3) continue;
        const int64_t x_stride = n + rows % 2, y_stride = k + rows % 3;
        const std::vector<T> x = random_values<T>(rows * x_stride, 11);
        for (const bool add : {false, true}) {
          Guarded<float> y(rows * y_stride), want(rows * y_stride);
          y.fill(3);
          want.fill(3);
          GemmTransposedArgs args{x.data(), act(), x_stride, w.packed, y.data(), y_stride, rows, add};
          run(args, pool());
          const std::string what = fmt::format("n {} k {} rows {} add {}", n, k, rows, add);
          y.expect_intact(what);
          args.y = want.data();
          ref::gemm_transposed(args);
          expect_close(y.values(), want.values(), tolerance(Op::kGemm, act()), what);
          for (int64_t row = 0; row < rows; ++row)
            for (int64_t j = k; j < y_stride; ++j) ASSERT_EQ(y.data()[row * y_stride + j], 3.0f) << what;
        }
      }
    }
  });
}

TEST_P(GemmTransposedTest, BitsDependOnTheRowAlone) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    ThreadPool one(1), many(7);
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{96, 256}, {71, 131}, {2085, 300}}) {
      const Weight<T> w(n, k, one);
      constexpr int64_t kRows = 41;
      const std::vector<T> x = random_values<T>(kRows * n, 13);
      std::vector<float> alone(static_cast<size_t>(kRows * k));
      for (int64_t row = 0; row < kRows; ++row)
        run({x.data() + row * n, act(), n, w.packed, alone.data() + row * k, k, 1}, one);
      for (int64_t rows : {2, 3, 11, 12, 13, 29, 41}) {
        for (ThreadPool* pool : {&one, &many}) {
          std::vector<float> y(static_cast<size_t>(rows * k));
          run({x.data(), act(), n, w.packed, y.data(), k, rows}, *pool);
          ASSERT_TRUE(same_bits(y.data(), alone.data(), rows * k)) << "rows " << rows << " n " << n << " k " << k;
        }
      }
    }
  });
}

LK_INSTANTIATE_KERNEL_TESTS(GemmTransposedTest);

}  // namespace
}  // namespace lk::testing
