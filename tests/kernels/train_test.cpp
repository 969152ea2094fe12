// SPDX-License-Identifier: Apache-2.0
// The kernels of training that are the same on every instruction set.
#include "lk/kernels/train.h"

#include <complex>

#include "kernels/kernel_test_util.h"

namespace lk::testing {
namespace {

using Complex = std::complex<double>;
constexpr Tolerance kF32 = {1e-12, 1e-6};

ThreadPool& one() {
  static ThreadPool pool(1);
  return pool;
}
ThreadPool& many() {
  static ThreadPool pool(5);
  return pool;
}

// --- Sums over rows: each is one chain, so two calls are one, and threads and rows of others change nothing.

TEST(ScatterRows, AddsRowsInOrderAndSkipsWhatHasNone) {
  constexpr int64_t kDim = 1300, kStride = kDim + 3;
  const std::vector<int32_t> rows = {4, 0, -1, 4, 2, 0, 4};
  const auto x = random_values<float>(static_cast<int64_t>(rows.size()) * kStride, 1);
  Guarded<float> got(5 * kStride), want(5 * kStride);
  for (auto* out : {&got, &want}) out->fill(0.3f);
  for (size_t m = 0; m < rows.size(); ++m)
    for (int64_t j = 0; j < kDim && rows[m] >= 0; ++j)
      want.data()[rows[m] * kStride + j] += x[m * kStride + static_cast<size_t>(j)];
  const std::span<const int32_t> all = rows;
  for (const size_t cut : {0, 1, 3, 7}) {
    got.fill(0.3f);
    scatter_rows({x.data(), kStride, all.first(cut), got.data(), kStride, kDim}, many());
    scatter_rows({x.data() + cut * kStride, kStride, all.subspan(cut), got.data(), kStride, kDim}, many());
    EXPECT_EQ(got.values(), want.values());
    got.expect_intact("gradient");
  }
}

TEST(ColumnSum, IsOneChainOverTheRows) {
  constexpr int64_t kRows = 37, kN = 1100, kStride = kN + 1;
  for (const DType type : {DType::kBF16, DType::kF32}) {
    const auto f32 = random_values<float>(kRows * kStride, 1);
    const auto narrow = random_values<bf16>(kRows * kStride, 1);
    const auto* x = type == DType::kF32 ? static_cast<const void*>(f32.data()) : narrow.data();
    const auto values = type == DType::kF32 ? f32 : as_floats(narrow);
    Guarded<float> whole(kN), parts(kN);
    std::vector<float> want(kN, 2);
    whole.fill(2);
    parts.fill(2);
    column_sum({x, type, kStride, 0.5f, whole.data(), kRows, kN}, one());
    column_sum({x, type, kStride, 0.5f, parts.data(), 11, kN}, many());
    column_sum({static_cast<const std::byte*>(x) + 11 * kStride * dtype_bytes(type), type, kStride, 0.5f, parts.data(),
                kRows - 11, kN},
               many());
    for (int64_t j = 0; j < kN; ++j) {
      double sum = 2;
      for (int64_t row = 0; row < kRows; ++row)
        sum += 0.5 * static_cast<double>(values[static_cast<size_t>(row * kStride + j)]);
      want[static_cast<size_t>(j)] = static_cast<float>(sum);
    }
    whole.expect_intact("gradient");
    expect_close(whole.values(), want, kF32, "column_sum");
    EXPECT_EQ(whole.values(), parts.values());
  }
}

TEST(DoraMagnitudeGrad, IsOneChainOverTheRows) {
  constexpr int64_t kRows = 23, kN = 700;
  const auto y = random_values<float>(kRows * kN, 2);
  const auto dy = random_values<bf16>(kRows * kN, 1);
  auto magnitudes = random_values<float>(kN, 3);
  for (float& m : magnitudes) m += m < 0 ? -1.0f : 1.0f;
  Guarded<float> whole(kN), parts(kN);
  whole.fill(1);
  parts.fill(1);
  const auto add = [&](int64_t begin, int64_t end, float* gradient, ThreadPool& pool) {
    dora_magnitude_grad({dy.data() + begin * kN, DType::kBF16, kN, y.data() + begin * kN, kN, magnitudes.data(),
                         gradient, end - begin, kN},
                        pool);
  };
  add(0, kRows, whole.data(), one());
  add(0, 9, parts.data(), many());
  add(9, kRows, parts.data(), many());
  EXPECT_EQ(whole.values(), parts.values());
  std::vector<float> want;
  for (int64_t j = 0; j < kN; ++j) {
    double sum = 1;
    for (int64_t row = 0; row < kRows; ++row) {
      const auto at = static_cast<size_t>(row * kN + j);
      sum += static_cast<double>(static_cast<float>(dy[at])) * static_cast<double>(y[at]) /
             static_cast<double>(magnitudes[static_cast<size_t>(j)]);
    }
    want.push_back(static_cast<float>(sum));
  }
  expect_close(whole.values(), want, kF32, "gradient");
  whole.expect_intact("gradient");
}

TEST(EmbeddingDeltaBackward, IsTheDerivativeAndOneChain) {
  constexpr int64_t kRank = 3, kVocab = 7, kDim = 90, kStride = kDim + 1;
  const std::vector<int32_t> tokens = {5, 0, 5, 6, 5};
  const auto rows = static_cast<int64_t>(tokens.size());
  const auto dy = random_values<float>(rows * kStride, 1), a = random_values<float>(kRank * kVocab, 2),
             b = random_values<float>(kDim * kRank, 3);
  const float scaling = 1.75f;
  // L = sum dy (scaling b a[:, token]); the derivatives by the complex step.
  std::vector<Complex> ca(a.begin(), a.end()), cb(b.begin(), b.end());
  const auto loss = [&] {
    Complex sum = 0;
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t j = 0; j < kDim; ++j)
        for (int64_t r = 0; r < kRank; ++r)
          sum += static_cast<double>(dy[static_cast<size_t>(m * kStride + j)]) * static_cast<double>(scaling) *
                 cb[static_cast<size_t>(j * kRank + r)] *
                 ca[static_cast<size_t>(r * kVocab + tokens[static_cast<size_t>(m)])];
    return sum;
  };
  const auto derivative = [&](std::vector<Complex>& x) {
    std::vector<float> out;
    for (Complex& value : x) {
      value += Complex(0, 1e-30);
      out.push_back(static_cast<float>(loss().imag() / 1e-30));
      value = value.real();
    }
    return out;
  };
  Guarded<float> da(kRank * kVocab), db(kDim * kRank), da2(kRank * kVocab), db2(kDim * kRank);
  for (auto* out : {&da, &db, &da2, &db2}) out->fill(0);
  const std::span<const int32_t> all = tokens;
  const auto add = [&](size_t begin, size_t count, Guarded<float>& ga, Guarded<float>& gb, ThreadPool& pool) {
    embedding_delta_backward({dy.data() + begin * kStride, kStride, all.subspan(begin, count), a.data(), b.data(),
                              ga.data(), gb.data(), kRank, kVocab, kDim, scaling},
                             pool);
  };
  add(0, 5, da, db, one());
  add(0, 2, da2, db2, many());
  add(2, 3, da2, db2, many());
  EXPECT_EQ(da.values(), da2.values());
  EXPECT_EQ(db.values(), db2.values());
  expect_close(da.values(), derivative(ca), kF32, "a");
  expect_close(db.values(), derivative(cb), kF32, "b");
  da.expect_intact("a");
  db.expect_intact("b");
}

// --- Columns, squares, scales

TEST(TakeColumns, MovesThem) {
  constexpr int64_t kRows = 20, kStride = 50;
  const std::vector<int32_t> columns = {49, 0, 17};
  for (const DType type : {DType::kBF16, DType::kF32}) {
    const auto values = random_values<float>(kRows * kStride, 1);
    Guarded<float> f32(kRows * kStride);
    Guarded<bf16> narrow(kRows * kStride);
    for (size_t i = 0; i < values.size(); ++i) {
      f32.data()[i] = values[i];
      narrow.data()[i] = bf16(values[i]);
    }
    Guarded<float> c(kRows * 4);
    c.fill(9);
    void* x = type == DType::kF32 ? static_cast<void*>(f32.data()) : narrow.data();
    take_columns({x, type, kStride, columns.data(), c.data(), 4, kRows, 3}, many());
    const auto left = type == DType::kF32 ? f32.values() : as_floats(narrow.values());
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t j = 0; j < kStride; ++j) {
        const float was = values[static_cast<size_t>(row * kStride + j)];
        const float want = type == DType::kF32 ? was : static_cast<float>(bf16(was));
        const auto taken = std::find(columns.begin(), columns.end(), j) - columns.begin();
        EXPECT_EQ(left[static_cast<size_t>(row * kStride + j)], taken < 3 ? 0 : want);
        if (taken < 3) {
          EXPECT_EQ(c.data()[row * 4 + taken], want);
        }
      }
      EXPECT_EQ(c.data()[row * 4 + 3], 9);
    }
  }
}

TEST(RowSquares, MatchesTheUnpackedWeight) {
  for (const WeightFormat format : {WeightFormat::kBF16Panels, WeightFormat::kF32Panels}) {
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {33, 65}, {70, 301}}) {
      const auto w = random_values<float>(n * k, 1);
      std::vector<std::byte> memory(static_cast<size_t>(packed_weight_bytes(format, n, k)));
      const PackedWeight packed{format, n, k, memory.data()};
      const PagedWeight paged(format, n, k, 640, 128, 5);
      for (const PackedWeight& weight : {packed, paged.get()}) {
        pack_weight(TensorView(w.data(), DType::kF32, {n, k}), 0, weight, one());
        Guarded<float> got(n);
        row_squares({weight, got.data()}, many());
        got.expect_intact("squares");
        std::vector<float> want;
        for (int64_t out = 0; out < n; ++out) {
          double sum = 0;
          for (int64_t in = 0; in < k; ++in) sum += std::pow(static_cast<double>(unpack_weight_at(weight, out, in)), 2);
          want.push_back(static_cast<float>(sum));
        }
        expect_close(got.values(), want, kF32, "squares");
      }
    }
  }
}

TEST(DoraScales, AreMagnitudesOverTheNormsOfTheSum) {
  constexpr int64_t kN = 100, kK = 40;
  for (const int64_t rank : {0, 1, 5, 33}) {
    const auto w = random_values<float>(kN * kK, 1), a = random_values<float>(rank * kK, 2),
               b = random_values<float>(rank * kN, 3), magnitudes = random_values<float>(kN, 4);
    const float scaling = 0.5f;
    std::vector<float> squares, products(static_cast<size_t>(rank * (kN + 2))), want_norms, want_scales;
    for (int64_t j = 0; j < kN; ++j) {
      double square = 0, norm = 0;
      for (int64_t i = 0; i < kK; ++i) {
        const auto base = static_cast<double>(w[static_cast<size_t>(j * kK + i)]);
        double sum = base;
        for (int64_t r = 0; r < rank; ++r)
          sum += static_cast<double>(scaling) * static_cast<double>(b[static_cast<size_t>(r * kN + j)]) *
                 static_cast<double>(a[static_cast<size_t>(r * kK + i)]);
        square += base * base;
        norm += sum * sum;
      }
      squares.push_back(static_cast<float>(square));
      want_norms.push_back(static_cast<float>(std::sqrt(norm)));
      want_scales.push_back(
          static_cast<float>(static_cast<double>(magnitudes[static_cast<size_t>(j)]) / std::sqrt(norm)));
      for (int64_t r = 0; r < rank; ++r) {
        double product = 0;
        for (int64_t i = 0; i < kK; ++i)
          product += static_cast<double>(a[static_cast<size_t>(r * kK + i)]) *
                     static_cast<double>(w[static_cast<size_t>(j * kK + i)]);
        products[static_cast<size_t>(r * (kN + 2) + j)] = static_cast<float>(product);
      }
    }
    Guarded<float> norms(kN), scales(kN);
    dora_scales({squares.data(), products.data(), kN + 2, a.data(), b.data(), magnitudes.data(), norms.data(),
                 scales.data(), rank, kN, kK, scaling},
                many());
    norms.expect_intact("norms");
    scales.expect_intact("scales");
    expect_close(norms.values(), want_norms, kF32, "norms");
    expect_close(scales.values(), want_scales, kF32, "scales");
  }
}

TEST(ModuleScales, FoldAndUnfoldAreProductAndDerivative) {
  constexpr int64_t kRank = 6, kModuleRank = 2, kModules = 3, kN = 700;
  const auto b = random_values<float>(kRank * kN, 1), sigma = random_values<float>(kModules * kN, 2),
             g = random_values<float>(kRank * kN, 3);
  Guarded<float> folded(kRank * kN), dsigma(kModules * kN);
  fold_modules({b.data(), sigma.data(), folded.data(), nullptr, kRank, kModuleRank, kN}, many());
  for (int64_t r = 0; r < kRank; ++r)
    for (int64_t j = 0; j < kN; ++j)
      EXPECT_EQ(folded.data()[r * kN + j],
                b[static_cast<size_t>(r * kN + j)] * sigma[static_cast<size_t>(r / 2 * kN + j)]);
  std::copy(g.begin(), g.end(), folded.data());
  dsigma.fill(1);
  unfold_modules({b.data(), sigma.data(), folded.data(), dsigma.data(), kRank, kModuleRank, kN}, many());
  folded.expect_intact("gradient of b");
  dsigma.expect_intact("gradient of sigma");
  std::vector<float> want_sigma(kModules * kN, 1);
  for (int64_t r = 0; r < kRank; ++r) {
    for (int64_t j = 0; j < kN; ++j) {
      const auto at = static_cast<size_t>(r * kN + j);
      EXPECT_EQ(folded.data()[at], g[at] * sigma[static_cast<size_t>(r / 2 * kN + j)]);
      want_sigma[static_cast<size_t>(r / 2 * kN + j)] += g[at] * b[at];
    }
  }
  EXPECT_EQ(dsigma.values(), want_sigma);
}

// --- Dropout

std::vector<float> dropped(const std::vector<float>& x, int64_t dim, const std::vector<DropoutRows>& rows,
                           ThreadPool& pool) {
  std::vector<float> y(x.size(), 7);
  dropout({x.data(), DType::kF32, dim, y.data(), DType::kF32, dim, false, dim, rows}, pool);
  return y;
}

TEST(Dropout, DropsAboutThePartItShouldAndScalesTheRest) {
  constexpr int64_t kDim = 1001, kRows = 200;
  const std::vector<float> x(kDim * kRows, 3);
  for (const float p : {0.0f, 0.05f, 0.5f, 0.9f}) {
    double sum = 0, zeros = 0;
    for (const float y : dropped(x, kDim, {{0, kRows, 42, 0, p}}, many())) {
      sum += static_cast<double>(y);
      zeros += y == 0 ? 1 : 0;
      if (y != 0) {
        ASSERT_NEAR(y, 3 / (1 - p), 1e-3f / (1 - p));
      }
    }
    const double n = kDim * kRows, deviation = std::sqrt(n * static_cast<double>(p * (1 - p)));
    EXPECT_NEAR(zeros, n * static_cast<double>(p), 5 * deviation + 1e-9) << p;
    EXPECT_NEAR(sum / n, 3, 0.1) << p;
    if (p == 0) {
      EXPECT_EQ(sum, 3 * n);
    }
  }
}

TEST(Dropout, MasksDependOnKeyPositionAndColumnOnly) {
  constexpr int64_t kDim = 200, kRows = 30;
  const auto x = random_values<float>(kDim * kRows, 1);
  const auto whole = dropped(x, kDim, {{0, kRows, 9, 100, 0.4f}}, one());
  // Cut anywhere, beside rows of others, on more threads.
  const auto parts = dropped(x, kDim, {{0, 3, 9, 100, 0.4f}, {3, 4, 5, 0, 0.9f}, {4, kRows, 9, 104, 0.4f}}, many());
  EXPECT_TRUE(same_bits(whole.data(), parts.data(), 3 * kDim));
  EXPECT_TRUE(same_bits(whole.data() + 4 * kDim, parts.data() + 4 * kDim, (kRows - 4) * kDim));
  // Rows, columns and keys differ.
  const std::vector<float> ones(kDim * 3, 1);
  const auto y = dropped(ones, kDim, {{0, 2, 9, 100, 0.5f}, {2, 3, 10, 100, 0.5f}}, one());
  EXPECT_FALSE(same_bits(y.data(), y.data() + kDim, kDim));
  EXPECT_FALSE(same_bits(y.data(), y.data() + 2 * kDim, kDim));
  EXPECT_FALSE(same_bits(y.data(), y.data() + kDim / 2, kDim / 2));
  // Rows outside the ranges stay as they are.
  const auto some = dropped(x, kDim, {{5, 6, 9, 105, 0.4f}}, one());
  EXPECT_TRUE(same_bits(some.data() + 5 * kDim, whole.data() + 5 * kDim, kDim));
  EXPECT_EQ(some[0], 7);
  EXPECT_EQ(some[6 * kDim], 7);
}

TEST(Dropout, AddsAndRounds) {
  constexpr int64_t kDim = 67, kRows = 3;
  const auto x = random_values<bf16>(kDim * kRows, 1);
  const DropoutRows rows{0, kRows, 1, 2, 0.25f};
  const auto want = dropped(as_floats(x), kDim, {rows}, one());
  Guarded<float> sum(kDim * kRows);
  Guarded<bf16> narrow(kDim * kRows);
  sum.fill(0.5f);
  dropout({x.data(), DType::kBF16, kDim, sum.data(), DType::kF32, kDim, true, kDim, {&rows, 1}}, one());
  dropout({x.data(), DType::kBF16, kDim, narrow.data(), DType::kBF16, kDim, false, kDim, {&rows, 1}}, one());
  sum.expect_intact("sum");
  narrow.expect_intact("rounded");
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(sum.data()[i], 0.5f + want[i]);
    EXPECT_EQ(static_cast<float>(narrow.data()[i]), static_cast<float>(bf16(want[i])));
  }
}

// --- The optimiser

TEST(Adamw, TakesTheStepsOfTheFormulaWithTheSameBitsEverywhere) {
  constexpr int64_t kN = 20001;
  std::vector<float> first;
  for (const CpuIsa isa : supported_cpu_isas()) {
    SCOPED_TRACE(to_string(isa));
    Guarded<float> param(kN), m(kN), v(kN);
    const auto start = random_values<float>(kN, 1);
    std::copy(start.begin(), start.end(), param.data());
    m.fill(0);
    v.fill(0);
    std::vector<double> p(start.begin(), start.end()), pm(kN), pv(kN);
    const double rate = 1e-2, beta1 = 0.9, beta2 = 0.95, eps = 1e-6, decay = 0.1, scale = 0.25;
    for (int step = 1; step <= 4; ++step) {
      const auto gradient = random_values<float>(kN, static_cast<uint64_t>(10 + step));
      const double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
      train_kernels(isa).adamw({param.data(), gradient.data(), m.data(), v.data(), kN, rate, beta1, beta2, eps, decay,
                                correction1, correction2, scale},
                               step % 2 == 0 ? one() : many());
      for (size_t i = 0; i < p.size(); ++i) {
        const double g = static_cast<double>(gradient[i]) * scale;
        p[i] *= 1 - rate * decay;
        pm[i] = beta1 * pm[i] + (1 - beta1) * g;
        pv[i] = beta2 * pv[i] + (1 - beta2) * g * g;
        p[i] -= rate * (pm[i] / correction1) / (std::sqrt(pv[i] / correction2) + eps);
      }
    }
    param.expect_intact("param");
    m.expect_intact("m");
    v.expect_intact("v");
    expect_close(param.values(), {p.begin(), p.end()}, kF32, "param");
    expect_close(m.values(), {pm.begin(), pm.end()}, kF32, "m");
    expect_close(v.values(), {pv.begin(), pv.end()}, kF32, "v");
    const std::vector<float> now(param.data(), param.data() + kN);
    if (first.empty()) first = now;
    EXPECT_EQ(0, std::memcmp(first.data(), now.data(), kN * sizeof(float)));
  }
}

TEST(SumSquares, IsTheSameOnAnyThreadsAndShowsWhatIsNotFinite) {
  for (const int64_t n : {1, 7, 65536, 65537, 300001}) {
    auto x = random_values<float>(n, 1);
    double want = 0;
    for (const float value : x) want += static_cast<double>(value) * static_cast<double>(value);
    const double got = sum_squares(x.data(), n, one());
    EXPECT_NEAR(got, want, 1e-12 * want);
    EXPECT_EQ(sum_squares(x.data(), n, many()), got);
    x.back() = NAN;
    EXPECT_FALSE(std::isfinite(sum_squares(x.data(), n, many())));
    x.back() = 1e30f;  // a square that f32 does not hold
    EXPECT_NEAR(sum_squares(x.data(), n, many()), 1e60, 1e53);
  }
}

TEST(Fill, FillsThatMuch) {
  for (const int64_t n : {1, 1000, 200001}) {
    Guarded<float> x(n);
    fill(x.data(), n, 1.5f, many());
    EXPECT_EQ(x.values(), std::vector<float>(static_cast<size_t>(n), 1.5f));
    x.expect_intact("x");
  }
}

}  // namespace
}  // namespace lk::testing
