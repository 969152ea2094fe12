// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/sparse.h"

#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"

namespace lk::testing {
namespace {

struct Pattern {
  std::vector<int64_t> begins{0};
  std::vector<int32_t> columns;
  SparsePattern view(int64_t out, int64_t in) const {
    return {begins.data(), columns.data(), out, in, static_cast<int64_t>(columns.size())};
  }
};
Pattern draw(int64_t out, int64_t in, double density, uint64_t seed) {
  Pattern pattern;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i)
      if (random_uniform(seed, static_cast<uint64_t>(o * in + i)) < density)
        pattern.columns.push_back(static_cast<int32_t>(i));
    pattern.begins.push_back(static_cast<int64_t>(pattern.columns.size()));
  }
  return pattern;
}

struct Shape {
  int64_t rows, out, in;
  double density;
};

class Sparse : public ::testing::TestWithParam<std::tuple<Shape, DType, CpuIsa>> {
 protected:
  const Shape shape_ = std::get<0>(GetParam());
  const DType act_ = std::get<1>(GetParam());
  const SparseRowKernels& rows_ = train_kernels(std::get<2>(GetParam())).sparse_row;
  const Pattern pattern_ = draw(shape_.out, shape_.in, shape_.density, 3);
  const SparsePattern s_ = pattern_.view(shape_.out, shape_.in);
  const int64_t x_stride_ = shape_.in + 3, y_stride_ = shape_.out + 1;
  ThreadPool one_{1}, many_{3};

  struct Act {
    std::vector<float> f32;
    std::vector<bf16> narrow;
    const void* data(DType type) const {
      return type == DType::kF32 ? static_cast<const void*>(f32.data()) : narrow.data();
    }
    float at(int64_t i, DType type) const {
      return type == DType::kF32 ? f32[static_cast<size_t>(i)] : static_cast<float>(narrow[static_cast<size_t>(i)]);
    }
  };
  static Act act(int64_t n, uint64_t seed) { return {random_values<float>(n, seed), random_values<bf16>(n, seed)}; }
  const Act x_ = act(shape_.rows * x_stride_, 1), dy_ = act(shape_.rows * y_stride_, 2);
  const std::vector<float> values_ = random_values<float>(s_.nnz + 1, 4);
};

TEST_P(Sparse, ProductsAreThoseOfTheDenseMatrix) {
  Guarded<float> y(shape_.rows * y_stride_), dx(shape_.rows * x_stride_);
  y.fill(0.5f), dx.fill(0.25f);
  std::vector<float> want_y = y.values(), want_dx = dx.values();
  for (int64_t m = 0; m < shape_.rows; ++m)
    for (int64_t o = 0; o < shape_.out; ++o) {
      double sum = 0;
      for (int64_t k = pattern_.begins[static_cast<size_t>(o)]; k < pattern_.begins[static_cast<size_t>(o + 1)]; ++k) {
        const int64_t i = pattern_.columns[static_cast<size_t>(k)];
        const auto value = static_cast<double>(values_[static_cast<size_t>(k)]);
        sum += value * static_cast<double>(x_.at(m * x_stride_ + i, act_));
        want_dx[static_cast<size_t>(m * x_stride_ + i)] +=
            static_cast<float>(value * static_cast<double>(dy_.at(m * y_stride_ + o, act_)));
      }
      want_y[static_cast<size_t>(m * y_stride_ + o)] += static_cast<float>(sum);
    }
  sparse_product({s_, values_.data(), x_.data(act_), act_, x_stride_, y.data(), y_stride_, shape_.rows}, rows_, many_);
  sparse_input_gradient({s_, values_.data(), dy_.data(act_), act_, y_stride_, dx.data(), x_stride_, shape_.rows}, rows_,
                        many_);
  expect_close(y.values(), want_y, {1e-11, 1e-5}, "y");
  expect_close(dx.values(), want_dx, {1e-11, 1e-5}, "dx");
  y.expect_intact("y"), dx.expect_intact("dx");
}

// Bit for bit: rows one by one are rows together, threads change nothing.
TEST_P(Sparse, ARowDependsOnItselfAlone) {
  Guarded<float> together(shape_.rows * y_stride_), apart(shape_.rows * y_stride_);
  Guarded<float> dx_together(shape_.rows * x_stride_), dx_apart(shape_.rows * x_stride_);
  for (auto* y : {&together, &apart, &dx_together, &dx_apart}) y->fill(1);
  sparse_product({s_, values_.data(), x_.data(act_), act_, x_stride_, together.data(), y_stride_, shape_.rows}, rows_,
                 many_);
  sparse_input_gradient(
      {s_, values_.data(), dy_.data(act_), act_, y_stride_, dx_together.data(), x_stride_, shape_.rows}, rows_, many_);
  const int64_t bytes = dtype_bytes(act_);
  for (int64_t m = 0; m < shape_.rows; ++m) {
    const auto* x = static_cast<const std::byte*>(x_.data(act_)) + m * x_stride_ * bytes;
    const auto* dy = static_cast<const std::byte*>(dy_.data(act_)) + m * y_stride_ * bytes;
    sparse_product({s_, values_.data(), x, act_, x_stride_, apart.data() + m * y_stride_, y_stride_, 1}, rows_, one_);
    sparse_input_gradient({s_, values_.data(), dy, act_, y_stride_, dx_apart.data() + m * x_stride_, x_stride_, 1},
                          rows_, one_);
  }
  EXPECT_EQ(together.values(), apart.values());
  EXPECT_EQ(dx_together.values(), dx_apart.values());
}

TEST_P(Sparse, AGradientIsOneChainOverTheRowsWhateverElseIsInTheMask) {
  Guarded<float> whole(s_.nnz + 1), parts(s_.nnz + 1);
  whole.fill(2), parts.fill(2);
  const SparseGradientArgs all{s_,        dy_.data(act_), x_.data(act_), act_,
                               y_stride_, x_stride_,      whole.data(),  shape_.rows};
  sparse_gradient(all, rows_, many_);
  const int64_t cut = shape_.rows / 3, bytes = dtype_bytes(act_);
  SparseGradientArgs part = all;
  part.gradient = parts.data();
  part.num_rows = cut;
  sparse_gradient(part, rows_, one_);
  part.num_rows = shape_.rows - cut;
  part.dy = static_cast<const std::byte*>(all.dy) + cut * y_stride_ * bytes;
  part.x = static_cast<const std::byte*>(all.x) + cut * x_stride_ * bytes;
  sparse_gradient(part, rows_, many_);
  EXPECT_EQ(whole.values(), parts.values());
  // The dense one, read at the mask: also where whole rows are taken another way.
  const Pattern full = draw(shape_.out, shape_.in, 1, 0);
  std::vector<float> dense(static_cast<size_t>(shape_.out * shape_.in), 2.0f);
  SparseGradientArgs every = all;
  every.s = full.view(shape_.out, shape_.in);
  every.gradient = dense.data();
  sparse_gradient(every, rows_, many_);
  for (int64_t o = 0; o < shape_.out; ++o)
    for (int64_t k = pattern_.begins[static_cast<size_t>(o)]; k < pattern_.begins[static_cast<size_t>(o + 1)]; ++k) {
      const int64_t i = pattern_.columns[static_cast<size_t>(k)];
      EXPECT_EQ(whole.values()[static_cast<size_t>(k)], dense[static_cast<size_t>(o * shape_.in + i)]);
      float want = 2;
      for (int64_t m = 0; m < shape_.rows; ++m)
        want += dy_.at(m * y_stride_ + o, act_) * x_.at(m * x_stride_ + i, act_);
      EXPECT_EQ(whole.values()[static_cast<size_t>(k)], want);
    }
}

TEST_P(Sparse, EveryInstructionSetHasTheSameBits) {
  const auto all = [&](const SparseRowKernels& rows) {
    std::vector<float> y(static_cast<size_t>(shape_.rows * y_stride_), 0.1f);
    std::vector<float> dx(static_cast<size_t>(shape_.rows * x_stride_), 0.3f);
    std::vector<float> gradient(static_cast<size_t>(s_.nnz + 1), 0.7f);
    sparse_product({s_, values_.data(), x_.data(act_), act_, x_stride_, y.data(), y_stride_, shape_.rows}, rows, many_);
    sparse_input_gradient({s_, values_.data(), dy_.data(act_), act_, y_stride_, dx.data(), x_stride_, shape_.rows},
                          rows, many_);
    sparse_gradient({s_, dy_.data(act_), x_.data(act_), act_, y_stride_, x_stride_, gradient.data(), shape_.rows}, rows,
                    many_);
    return std::tuple(y, dx, gradient);
  };
  EXPECT_EQ(all(rows_), all(train_kernels(CpuIsa::kPortable).sparse_row));
}

INSTANTIATE_TEST_SUITE_P(Shapes, Sparse,
                         ::testing::Combine(::testing::Values(Shape{1, 5, 7, 0.5}, Shape{16, 9, 33, 0.1},
                                                              Shape{37, 40, 24, 0.3}, Shape{50, 16, 16, 1},
                                                              Shape{19, 8, 8, 0.02}),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::ValuesIn(supported_cpu_isas())));

TEST(ProximalGradient, PullsTowardsTheAnchor) {
  ThreadPool pool(2);
  const std::vector<float> x{1, 2, -3}, anchor{1, 1, 1};
  std::vector<float> gradient{0.5f, 0, 1};
  proximal_gradient({x.data(), anchor.data(), gradient.data(), 3, 0.5f}, pool);
  EXPECT_EQ(gradient, (std::vector<float>{0.5f, 0.5f, -1}));
}

}  // namespace
}  // namespace lk::testing
