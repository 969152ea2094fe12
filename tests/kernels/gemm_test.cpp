// SPDX-License-Identifier: Apache-2.0
#include "kernels/kernel_test_util.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {
namespace {

class GemmTest : public KernelTest {
 protected:
  template <class T>
  struct Case {
    int64_t n, k;
    std::vector<T> w;
    Buffer packed;
    PackedWeight weight;
    Case(int64_t n_, int64_t k_, ThreadPool& pool) : n(n_), k(k_), w(random_values<T>(n * k, 7)) {
      const WeightFormat format = sizeof(T) == 2 ? WeightFormat::kBF16Panels : WeightFormat::kF32Panels;
      packed = Buffer(packed_weight_bytes(format, n, k));
      weight = {format, n, k, packed.data()};
      pack_weight(TensorView(w.data(), dtype_of<T>(), {n, k}), 0, weight, pool);
    }
  };
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
};

TEST_P(GemmTest, MatchesRefOnRaggedShapes) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {5, 3}, {16, 8}, {31, 33}, {32, 64}, {33, 65}, {48, 7}, {64, 130}, {97, 257}, {200, 95}}) {
      const Case<T> c(n, k, pool());
      for (int64_t rows : {0, 1, 2, 3, 12, 13, 40}) {
        // x ends exactly at its last element: the sanitizer sees a read past it.
        const std::vector<T> x = random_values<T>(rows * k, 11);
        Guarded<float> y(rows * n);
        const GemmArgs args{x.data(), act(), k, c.weight, y.data(), n, rows};
        kernels().gemm(args, pool());
        const std::string what = fmt::format("n {} k {} rows {}", n, k, rows);
        y.expect_intact(what);
        Guarded<float> want(rows * n);
        GemmArgs ref_args = args;
        ref_args.y = want.data();
        ref::gemm(ref_args);
        expect_close(y.values(), want.values(), tolerance(Op::kGemm, act()), what);
      }
    }
  });
}

TEST_P(GemmTest, RowAloneEqualsRowInABatchBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{96, 256}, {70, 131}}) {
      const Case<T> c(n, k, pool());
      constexpr int64_t kMaxRows = 67;
      const std::vector<T> x = random_values<T>(kMaxRows * k, 13);
      std::vector<float> alone(static_cast<size_t>(kMaxRows * n));
      for (int64_t row = 0; row < kMaxRows; ++row)
        kernels().gemm({x.data() + row * k, act(), k, c.weight, alone.data() + row * n, n, 1}, pool());
      for (int64_t rows = 1; rows <= kMaxRows; rows += rows < 41 ? 1 : 13) {
        std::vector<float> y(static_cast<size_t>(rows * n));
        kernels().gemm({x.data(), act(), k, c.weight, y.data(), n, rows}, pool());
        ASSERT_TRUE(same_bits(y.data(), alone.data(), rows * n)) << "rows " << rows << " n " << n << " k " << k;
      }
    }
  });
}

// More rows than a cache holds beside the weights, more of the inner dimension than is brought together at once, and
// panels enough for groups of them.
TEST_P(GemmTest, RowAloneEqualsRowAmongHundredsBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kRows = 260, kN = 32 * 32 + 6, kK = 2200;
    const Case<T> c(kN, kK, pool());
    const std::vector<T> x = random_values<T>(kRows * kK, 13);
    Guarded<float> y(kRows * kN);
    kernels().gemm({x.data(), act(), kK, c.weight, y.data(), kN, kRows}, pool());
    y.expect_intact("y");
    std::vector<float> alone(kN);
    for (int64_t row = 0; row < kRows; row += 37) {
      kernels().gemm({x.data() + row * kK, act(), kK, c.weight, alone.data(), kN, 1}, pool());
      ASSERT_TRUE(same_bits(y.data() + row * kN, alone.data(), kN)) << "row " << row;
    }
  });
}

TEST_P(GemmTest, HonoursStrides) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Case<T> c(40, 24, pool());
    const std::vector<T> x = random_values<T>(5 * 31, 17);
    Guarded<float> y(5 * 50);
    y.fill(-7.0f);
    kernels().gemm({x.data(), act(), 31, c.weight, y.data(), 50, 5}, pool());
    Guarded<float> want(5 * 50);
    want.fill(-7.0f);
    ref::gemm({x.data(), act(), 31, c.weight, want.data(), 50, 5});
    expect_close(y.values(), want.values(), tolerance(Op::kGemm, act()), "strided");
    y.expect_intact("strided");
    for (int64_t row = 0; row < 5; ++row)
      for (int64_t col = 40; col < 50; ++col) ASSERT_EQ(y.data()[row * 50 + col], -7.0f);
  });
}
// Pages smaller and larger than a panel, of one step and of many, that end in the middle of a panel or between two.
TEST_P(GemmTest, InScatteredPagesIsBitIdenticalToInOneBlock) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k] :
         std::vector<std::pair<int64_t, int64_t>>{{5, 3}, {33, 65}, {64, 130}, {97, 257}, {40, 1024}}) {
      const Case<T> c(n, k, pool());
      for (const int64_t page_bytes : {128, 640, 8192, 12800, 1 << 20}) {
        for (const int64_t begin : {0, 384}) {
          PagedWeight paged(c.weight.format, n, k, page_bytes, begin, static_cast<uint64_t>(n * page_bytes));
          pack_weight(TensorView(c.w.data(), dtype_of<T>(), {n, k}), 0, paged.get(), pool());
          paged.expect_untouched_between();
          for (int64_t out = 0; out < n; ++out)
            for (int64_t in = 0; in < k; ++in)
              ASSERT_EQ(unpack_weight_at(paged.get(), out, in), unpack_weight_at(c.weight, out, in));
          for (int64_t rows : {1, 4, 7, 12, 40}) {
            const std::vector<T> x = random_values<T>(rows * k, 11);
            Guarded<float> want(rows * n), got(rows * n);
            kernels().gemm({x.data(), act(), k, c.weight, want.data(), n, rows}, pool());
            kernels().gemm({x.data(), act(), k, paged.get(), got.data(), n, rows}, pool());
            got.expect_intact("y");
            ASSERT_EQ(got.values(), want.values())
                << "n " << n << " k " << k << " rows " << rows << " pages of " << page_bytes << " from " << begin;
          }
        }
      }
    }
  });
}

// What ranks rely on: the sum of any subtree of shards, added to that of the other one, is the whole product's, bit for
// bit, for any height of tile and also where a panel is cut by pages.
TEST_P(GemmTest, ShardsAreAddedInABinaryTree) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{70, 256}, {33, 768}, {64, 2048}}) {
      const Case<T> c(n, k, pool());
      const PagedWeight paged(c.weight.format, n, k, 1152, 128, 5);
      pack_weight(TensorView(c.w.data(), dtype_of<T>(), {n, k}), 0, paged.get(), pool());
      for (const int64_t rows : {1, 2, 5, 12, 13, 40}) {
        const std::vector<T> x = random_values<T>(rows * k, 11);
        // Shards [first, first + count) of `shards`, by a matrix of these columns alone.
        const auto part = [&](int64_t shards, int64_t first, int64_t count) {
          const int64_t begin = k / shards * first, width = k / shards * count;
          std::vector<T> columns;
          for (int64_t out = 0; out < n; ++out)
            columns.insert(columns.end(), c.w.begin() + out * k + begin, c.w.begin() + out * k + begin + width);
          Buffer packed(packed_weight_bytes(c.weight.format, n, width));
          const PackedWeight weight{c.weight.format, n, width, packed.data()};
          pack_weight(TensorView(columns.data(), dtype_of<T>(), {n, width}), 0, weight, pool());
          Guarded<float> y(rows * n);
          kernels().gemm({x.data() + begin, act(), k, weight, y.data(), n, rows, count}, pool());
          y.expect_intact("part");
          return y.values();
        };
        for (int64_t shards = 1; shards <= kMaxShards; shards *= 2) {
          const std::string what = fmt::format("n {} k {} rows {} shards {}", n, k, rows, shards);
          const std::vector<float> whole = part(shards, 0, shards);
          for (int64_t ranks = 1; ranks <= shards; ranks *= 2) {
            std::vector<std::vector<float>> sums;
            for (int64_t rank = 0; rank < ranks; ++rank)
              sums.push_back(part(shards, shards / ranks * rank, shards / ranks));
            for (size_t step = 1; step < sums.size(); step *= 2)
              for (size_t rank = 0; rank < sums.size(); rank += 2 * step)
                for (size_t i = 0; i < whole.size(); ++i) sums[rank][i] += sums[rank + step][i];
            ASSERT_TRUE(same_bits(sums[0].data(), whole.data(), rows * n)) << what << " ranks " << ranks;
          }
          Guarded<float> in_pages(rows * n), want(rows * n);
          kernels().gemm({x.data(), act(), k, paged.get(), in_pages.data(), n, rows, shards}, pool());
          ASSERT_EQ(in_pages.values(), whole) << what << " in pages";
          ref::gemm({x.data(), act(), k, c.weight, want.data(), n, rows, shards});
          expect_close(whole, want.values(), tolerance(Op::kGemm, act()), what);
        }
      }
    }
  });
}

LK_INSTANTIATE_KERNEL_TESTS(GemmTest);

TEST(PackWeight, CopiesPanelsFromPagesToPages) {
  constexpr int64_t kN = 130, kK = 70;
  ThreadPool pool(1);
  const std::vector<float> w = random_values<float>(kN * kK, 3);
  const PagedWeight from(WeightFormat::kF32Panels, kN, kK, 640, 128, 1),
      to(WeightFormat::kF32Panels, kN, kK, 1152, 0, 2);
  pack_weight(TensorView(w.data(), DType::kF32, {kN, kK}), 0, from.get(), pool);
  // Panels 1 to 3 of 5.
  copy_panels(from.get(), to.get(), from.get().panel_bytes(), 3 * from.get().panel_bytes());
  for (int64_t out = 0; out < kN; ++out)
    for (int64_t in = 0; in < kK; ++in) {
      if (out >= 32 && out < 128)
        ASSERT_EQ(unpack_weight_at(to.get(), out, in), w[static_cast<size_t>(out * kK + in)]);
      else
        ASSERT_TRUE(std::isnan(unpack_weight_at(to.get(), out, in))) << "not to be copied";
    }
  to.expect_untouched_between();
}

TEST(PackWeight, KeepsEveryElementOfEveryDtypeAndPadsWithZeros) {
  ThreadPool pool(2);
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {33, 31}, {64, 100}, {70, 65}}) {
    const std::vector<float> w = random_values<float>(n * k, 3, 100.0);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      std::vector<float> source(w.size());
      convert(w.data(), DType::kF32, source.data(), dtype, n * k);
      for (WeightFormat format : {WeightFormat::kBF16Panels, WeightFormat::kF32Panels}) {
        const int64_t bytes = packed_weight_bytes(format, n, k);
        std::vector<std::byte> packed(static_cast<size_t>(bytes), std::byte{0xff});
        pack_weight(TensorView(source.data(), dtype, {n, k}), 0, {format, n, k, packed.data()}, pool);
        double sum = 0, want_sum = 0;
        for (int64_t out = 0; out < n; ++out) {
          for (int64_t in = 0; in < k; ++in) {
            float value;
            convert(
                static_cast<const char*>(static_cast<const void*>(source.data())) + (out * k + in) * dtype_bytes(dtype),
                dtype, &value, DType::kF32, 1);
            if (format == WeightFormat::kBF16Panels) value = static_cast<float>(bf16(value));
            ASSERT_EQ(unpack_weight_at({format, n, k, packed.data()}, out, in), value)
                << to_string(dtype) << " " << out << " " << in;
            want_sum += std::fabs(static_cast<double>(value));
          }
        }
        // Everything but the elements is zero.
        std::vector<float> all(static_cast<size_t>(bytes / (format == WeightFormat::kBF16Panels ? 2 : 4)));
        convert(packed.data(), format == WeightFormat::kBF16Panels ? DType::kBF16 : DType::kF32, all.data(),
                DType::kF32, static_cast<int64_t>(all.size()));
        for (float value : all) sum += std::fabs(static_cast<double>(value));
        EXPECT_NEAR(sum, want_sum, 1e-6 * want_sum);
      }
    }
  }
}

TEST(PackWeight, F16SpecialValuesSurvive) {
  ThreadPool pool(1);
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<std::byte> packed(static_cast<size_t>(packed_weight_bytes(WeightFormat::kF32Panels, 1, 65536)));
  const PackedWeight w{WeightFormat::kF32Panels, 1, 65536, packed.data()};
  pack_weight(TensorView(bits.data(), DType::kF16, {1, 65536}), 0, w, pool);
  for (size_t i = 0; i < bits.size(); ++i) {
    f16 half;
    half.bits = bits[i];
    const float want = static_cast<float>(half), got = unpack_weight_at(w, 0, static_cast<int64_t>(i));
    if (std::isnan(want))
      ASSERT_TRUE(std::isnan(got)) << i;
    else
      ASSERT_EQ(got, want) << i;
  }
}

TEST(PackWeight, PartsShareOneMatrix) {
  ThreadPool pool(1);
  const std::vector<float> a = random_values<float>(64 * 10, 1), b = random_values<float>(5 * 10, 2);
  std::vector<std::byte> packed(static_cast<size_t>(packed_weight_bytes(WeightFormat::kF32Panels, 69, 10)));
  const PackedWeight w{WeightFormat::kF32Panels, 69, 10, packed.data()};
  pack_weight(TensorView(a.data(), DType::kF32, {64, 10}), 0, w, pool);
  pack_weight(TensorView(b.data(), DType::kF32, {5, 10}), 64, w, pool);
  EXPECT_EQ(unpack_weight_at(w, 63, 9), a[639]);
  EXPECT_EQ(unpack_weight_at(w, 68, 9), b[49]);
}

}  // namespace
}  // namespace lk::testing
