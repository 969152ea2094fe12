// SPDX-License-Identifier: Apache-2.0
// merge_panel against straight loops in f64: every instruction set and type, ragged shapes, DoRA scales, both
// roundings.
#include "kernels/kernel_test_util.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {
namespace {

class MergeTest : public KernelTest {
 protected:
  WeightFormat format() const { return act() == DType::kBF16 ? WeightFormat::kBF16Panels : WeightFormat::kF32Panels; }
  ThreadPool one_{1};
};

// W [n, k] packed, with b [cols, rank] and a [rank, k] of the projection whose columns start at `begin`.
template <class T>
struct Case {
  int64_t n, k, begin, cols, rank;
  std::vector<T> w, b, a, a_transposed;
  Buffer packed, packed_b, out;
  MergeArgs args;
  Case(int64_t n_, int64_t k_, int64_t begin_, int64_t cols_, int64_t rank_, WeightFormat format, double b_scale,
       ThreadPool& pool)
      : n(n_),
        k(k_),
        begin(begin_),
        cols(cols_),
        rank(rank_),
        w(random_values<T>(n * k, 3)),
        b(random_values<T>(cols * rank, 4, b_scale)),
        a(random_values<T>(rank * k, 5)),
        a_transposed(a.size()) {
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t i = 0; i < k; ++i)
        a_transposed[static_cast<size_t>(i * rank + r)] = a[static_cast<size_t>(r * k + i)];
    packed = Buffer(packed_weight_bytes(format, n, k));
    packed_b = Buffer(packed_weight_bytes(format, cols, rank));
    out = Buffer(packed.size_bytes());
    pack_weight(TensorView(w.data(), dtype_of<T>(), {n, k}), 0, {format, n, k, packed.data()}, pool);
    pack_weight(TensorView(b.data(), dtype_of<T>(), {cols, rank}), 0, {format, cols, rank, packed_b.data()}, pool);
    std::memcpy(out.data(), packed.data(), static_cast<size_t>(packed.size_bytes()));
    args = {.w = {format, n, k, packed.data()},
            .out = {format, n, k, out.data()},
            .out_begin = begin,
            .a_transposed = a_transposed.data(),
            .b = {format, cols, rank, packed_b.data()},
            .scaling = 1.5f};
  }
  double exact(int64_t j, int64_t i, const float* scale) const {
    double sum = 0;
    for (int64_t r = 0; r < rank; ++r)
      sum += static_cast<double>(static_cast<float>(b[static_cast<size_t>(j * rank + r)])) *
             static_cast<double>(static_cast<float>(a[static_cast<size_t>(r * k + i)]));
    return (static_cast<double>(static_cast<float>(w[static_cast<size_t>((begin + j) * k + i)])) + 1.5 * sum) *
           (scale ? static_cast<double>(scale[j]) : 1.0);
  }
};

TEST_P(MergeTest, EqualsBasePlusDeltaRoundedOnceAndTouchesNothingElse) {
  const auto check = [&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k, begin, cols, rank] : std::vector<std::array<int64_t, 5>>{{32, 1, 0, 32, 1},
                                                                                     {96, 33, 32, 33, 3},
                                                                                     {64, 64, 0, 64, 8},
                                                                                     {128, 257, 64, 40, 16},
                                                                                     {160, 600, 96, 64, 33},
                                                                                     {33, 5, 0, 33, 2}}) {
      for (const bool dora : {false, true}) {
        Case<T> c(n, k, begin, cols, rank, format(), 0.1, pool());
        const std::vector<float> scale = random_values<float>(cols, 9, 2.0);
        if (dora) c.args.out_scale = scale.data();
        MergeSums sums;
        for (int64_t panel = 0; panel * kPanelCols < cols; ++panel) kernels().merge_panel(c.args, panel, one_, &sums);
        const PackedWeight merged{format(), n, k, c.out.data()};
        double change = 0, rounding = 0;
        for (int64_t j = 0; j < n; ++j) {
          for (int64_t i = 0; i < k; ++i) {
            const double got = static_cast<double>(unpack_weight_at(merged, j, i));
            const double base = static_cast<double>(unpack_weight_at(c.args.w, j, i));
            if (j < begin || j >= begin + cols) {
              ASSERT_EQ(got, base) << "column " << j << " is another projection's";
              continue;
            }
            const double want = c.exact(j - begin, i, dora ? scale.data() : nullptr);
            // f32 sums of values of order one, then half a unit in the last place of bf16.
            const double half_unit = act() == DType::kBF16 && want != 0 ? std::ldexp(1.0, std::ilogb(want) - 8) : 0.0;
            ASSERT_NEAR(got, want, 2e-6 + half_unit) << j << "," << i << " n " << n << " k " << k << " rank " << rank;
            change += (want - base) * (want - base);
            rounding += (got - want) * (got - want);
          }
        }
        EXPECT_NEAR(sums.change, change, 1e-4 * change);
        if (act() == DType::kBF16)
          EXPECT_NEAR(sums.rounding, rounding, 1e-2 * rounding + 1e-12);
        else
          EXPECT_LE(sums.rounding, 1e-12 * change + 1e-10);
      }
    }
  };
  if (act() == DType::kBF16)
    check(std::type_identity<bf16>{});
  else
    check(std::type_identity<float>{});
}

// The copy lies in pages, the base in one block: the same bits, and the same sums in the same order.
TEST_P(MergeTest, IntoScatteredPagesIsBitIdenticalToIntoOneBlock) {
  const auto check = [&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k, begin, cols, rank] :
         std::vector<std::array<int64_t, 5>>{{96, 33, 32, 33, 3}, {160, 600, 96, 64, 33}, {33, 5, 0, 33, 2}}) {
      for (const int64_t page_bytes : {128, 640, 12800}) {
        Case<T> c(n, k, begin, cols, rank, format(), 0.1, pool());
        const PagedWeight paged(format(), n, k, page_bytes, 256, 5);
        copy_panels(c.args.w, paged.get(), 0, c.args.w.total_bytes());
        MergeArgs in_pages = c.args;
        in_pages.out = paged.get();
        MergeSums block_sums, paged_sums;
        for (int64_t panel = 0; panel * kPanelCols < cols; ++panel) {
          kernels().merge_panel(c.args, panel, one_, &block_sums);
          kernels().merge_panel(in_pages, panel, one_, &paged_sums);
        }
        EXPECT_EQ(paged_sums.change, block_sums.change);
        EXPECT_EQ(paged_sums.rounding, block_sums.rounding);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t i = 0; i < k; ++i)
            ASSERT_EQ(unpack_weight_at(paged.get(), j, i), unpack_weight_at(c.args.out, j, i)) << j << "," << i;
        paged.expect_untouched_between();
      }
    }
  };
  if (act() == DType::kBF16)
    check(std::type_identity<bf16>{});
  else
    check(std::type_identity<float>{});
}

// Deltas below half a unit in the last place of W: rounding drops them all, and says so.
TEST_P(MergeTest, WhatRoundingSwallowsIsMeasured) {
  if (act() != DType::kBF16) GTEST_SKIP() << "f32 is not rounded";
  Case<bf16> c(64, 512, 0, 64, 1, format(), 0.0, pool());
  std::fill(c.w.begin(), c.w.end(), bf16(1.0f));  // unit in the last place: 2^-7
  std::fill(c.b.begin(), c.b.end(), bf16(0x1p-10f));
  std::fill(c.a_transposed.begin(), c.a_transposed.end(), bf16(1.0f));
  pack_weight(TensorView(c.w.data(), DType::kBF16, {64, 512}), 0, c.args.w, pool());
  pack_weight(TensorView(c.b.data(), DType::kBF16, {64, 1}), 0, c.args.b, pool());
  c.args.scaling = 1;
  MergeSums sums;
  for (int64_t panel = 0; panel < 2; ++panel) kernels().merge_panel(c.args, panel, one_, &sums);
  for (int64_t j = 0; j < 64; ++j)
    for (int64_t i = 0; i < 512; ++i) ASSERT_EQ(unpack_weight_at(c.args.out, j, i), 1.0f) << j << " " << i;
  EXPECT_NEAR(std::sqrt(sums.rounding / sums.change), 1.0, 0.05);
}

LK_INSTANTIATE_KERNEL_TESTS(MergeTest);

}  // namespace
}  // namespace lk::testing
