// SPDX-License-Identifier: Apache-2.0
#include <deque>

#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"

namespace lk::testing {
namespace {

class OuterTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
  void run(const std::vector<OuterProduct>& products, ThreadPool& pool) {
    train_kernels(std::get<0>(GetParam())).outer(products, pool);
  }
};

TEST_P(OuterTest, MatchesRefOnRaggedShapes) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    // All in one call.
    std::vector<OuterProduct> products;
    std::deque<std::vector<float>> factors;
    std::deque<std::vector<T>> inputs;
    std::deque<Guarded<float>> gradients, wanted;
    for (int64_t rows : {0, 1, 2, 127, 129, 300}) {
      for (const auto& [rank, width] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {3, 16}, {16, 31}, {13, 32}, {8, 65}, {70, 33}, {0, 4}, {5, 700}}) {
        const int64_t c_stride = rank + 2, x_stride = width + rows % 3, gradient_stride = width + 1;
        factors.push_back(random_values<float>(rows * c_stride, 1));
        inputs.push_back(random_values<T>(rows * x_stride, 2));
        for (auto* out : {&gradients, &wanted}) {
          out->emplace_back(rank * gradient_stride);
          out->back().fill(0.5f);
        }
        products.push_back({factors.back().data(), c_stride, inputs.back().data(), act(), x_stride, rows, rank, width,
                            gradients.back().data(), gradient_stride});
      }
    }
    run(products, pool());
    for (size_t i = 0; i < products.size(); ++i) {
      OuterProduct p = products[i];
      p.gradient = wanted[i].data();
      ref::outer(p);
      const std::string what = fmt::format("{} rows, rank {}, width {}", p.num_rows, p.rank, p.width);
      gradients[i].expect_intact(what);
      expect_close(gradients[i].values(), wanted[i].values(), tolerance(Op::kOuter, act()), what);
    }
  });
}

// An element is one chain over the rows: however they were cut into calls, whoever came with them.
TEST_P(OuterTest, RowsInTwoCallsAreTheSameBits) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kRows = 300, kRank = 17, kWidth = 1100;
    const auto c = random_values<float>(kRows * kRank, 1);
    const auto x = random_values<T>(kRows * kWidth, 2);
    const auto start = random_values<float>(kRank * kWidth, 3);
    ThreadPool one(1), many(7);
    const auto product = [&](int64_t begin, int64_t end, std::vector<float>& gradient) {
      return OuterProduct{
          c.data() + begin * kRank, kRank, x.data() + begin * kWidth, act(), kWidth, end - begin, kRank, kWidth,
          gradient.data(),          kWidth};
    };
    std::vector<float> whole = start;
    run({product(0, kRows, whole)}, one);
    for (const int64_t cut : {1, 127, 128, 131, 299}) {
      std::vector<float> parts = start, other = start;
      run({product(0, cut, parts), product(5, 90, other)}, many);
      run({product(cut, kRows, parts)}, many);
      EXPECT_TRUE(same_bits(parts.data(), whole.data(), kRank * kWidth)) << cut;
    }
  });
}

LK_INSTANTIATE_KERNEL_TESTS(OuterTest);

}  // namespace
}  // namespace lk::testing
