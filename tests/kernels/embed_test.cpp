// SPDX-License-Identifier: Apache-2.0
// Embedding rows, gathered rows and scattered columns of a product against straight loops, bit for bit.
#include "kernels/kernel_test_util.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {
namespace {

template <class T>
TensorView matrix_view(const std::vector<T>& values, int64_t rows, int64_t cols) {
  return {values.data(), dtype_of<T>(), {rows, cols}};
}

// What the forward pass did one token after the other before embedding was an op.
template <class T>
std::vector<float> embed_alone(const T* row, int64_t dim, const EmbeddingDelta* delta, int32_t token) {
  std::vector<float> y;
  for (int64_t d = 0; d < dim; ++d) y.push_back(static_cast<float>(row[d]));
  if (!delta) return y;
  const int64_t rank = delta->a.dim(0), vocab = delta->a.dim(1);
  std::vector<float> a(static_cast<size_t>(rank * vocab)), b(static_cast<size_t>(rank * dim));
  delta->a.copy_to(a.data());
  delta->b.copy_to(b.data());
  for (int64_t d = 0; d < dim; ++d) {
    double sum = 0;
    for (int64_t k = 0; k < rank; ++k)
      sum += static_cast<double>(b[static_cast<size_t>(d * rank + k)]) * a[static_cast<size_t>(k * vocab + token)];
    y[static_cast<size_t>(d)] += static_cast<float>(delta->scaling * sum);
  }
  return y;
}

TEST(Embed, RowsOfAnyTypeWithDeltasEqualOneTokenAfterTheOtherBitForBit) {
  ThreadPool pool(3);
  constexpr int64_t kVocab = 19;
  for (const int64_t dim : {1, 37, 512, 1300}) {
    for (const int64_t rank : {1, 5, 64, 130}) {
      const auto table = random_values<bf16>(kVocab * dim, 1), other = random_values<bf16>(kVocab * dim, 2);
      const auto trained = random_values<float>(3 * dim, 3);
      const auto a = random_values<float>(rank * kVocab, 4);
      const auto b = random_values<bf16>(dim * rank, 5);
      const EmbeddingDelta delta{.a = matrix_view(a, rank, kVocab), .b = matrix_view(b, dim, rank), .scaling = 1.0 / 3};
      std::vector<EmbedRow> rows;
      std::vector<float> want;
      const auto add = [&](const auto* row, const EmbeddingDelta* d, int32_t token) {
        rows.push_back(
            {.source = row, .dtype = dtype_of<std::remove_cvref_t<decltype(*row)>>(), .token = token, .delta = d});
        const auto y = embed_alone(row, dim, d, token);
        want.insert(want.end(), y.begin(), y.end());
      };
      for (int32_t i = 0; i < 30; ++i) {
        const int32_t token = i * 7 % kVocab;
        const EmbeddingDelta* d = i % 3 == 0 ? &delta : nullptr;
        if (i % 5 == 4)
          add(trained.data() + i % 3 * dim, d, token);
        else
          add((i % 2 == 0 ? table : other).data() + token * dim, d, token);
      }
      Guarded<float> y(30 * dim);
      embed({.rows = rows, .y = y.data(), .y_stride = dim, .dim = dim}, pool);
      y.expect_intact(fmt::format("dim {} rank {}", dim, rank));
      EXPECT_TRUE(same_bits(y.data(), want.data(), 30 * dim)) << "dim " << dim << " rank " << rank;
      // A row alone is what it is among others.
      std::vector<float> alone(static_cast<size_t>(dim));
      embed({.rows = {&rows[9], 1}, .y = alone.data(), .y_stride = dim, .dim = dim}, pool);
      EXPECT_TRUE(same_bits(alone.data(), want.data() + 9 * dim, dim));
    }
  }
}

TEST(GatherRows, CopiesRowsInTheirOrder) {
  ThreadPool pool(3);
  for (const int64_t dim : {1, 33, 2048}) {
    const auto x = random_values<float>(40 * (dim + 3), 1);
    const std::vector<int32_t> rows = {0, 3, 3, 17, 38, 39, 1};
    Guarded<float> y(7 * dim);
    gather_rows({.x = x.data(), .x_stride = dim + 3, .rows = rows, .y = y.data(), .y_stride = dim, .dim = dim}, pool);
    y.expect_intact("gathered");
    for (size_t i = 0; i < rows.size(); ++i)
      EXPECT_TRUE(same_bits(y.data() + static_cast<int64_t>(i) * dim, x.data() + rows[i] * (dim + 3), dim));
  }
}

class GemmColumnsTest : public KernelTest {};

template <class X, class W>
void check_columns(const CpuKernels& kernels, ThreadPool& pool, int64_t n, int64_t k, int64_t num_rows) {
  const WeightFormat format = std::is_same_v<W, bf16> ? WeightFormat::kBF16Panels : WeightFormat::kF32Panels;
  const auto x = random_values<X>(num_rows * k, 1);
  const auto w = random_values<W>(n * k, 2);
  Buffer packed(packed_weight_bytes(format, n, k));
  const PackedWeight whole{format, n, k, packed.data()};
  const PagedWeight paged(format, n, k, 384, 256, 3);
  for (const PackedWeight& weight : {whole, paged.get()}) pack_weight(matrix_view(w, n, k), 0, weight, pool);
  const int64_t width = 3 * n + 5;
  std::vector<int32_t> columns;
  for (int64_t j = 0; j < n; ++j) columns.push_back(static_cast<int32_t>((j * 3 + 7) % width));
  std::vector<float> want(static_cast<size_t>(num_rows * width), -7);
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += static_cast<double>(static_cast<float>(w[static_cast<size_t>(j * k + i)])) *
               static_cast<double>(static_cast<float>(x[static_cast<size_t>(row * k + i)]));
      want[static_cast<size_t>(row * width + columns[static_cast<size_t>(j)])] = static_cast<float>(sum);
    }
  for (const PackedWeight& weight : {whole, paged.get()}) {
    Guarded<float> y(num_rows * width);
    y.fill(-7);
    kernels.gemm_columns({.x = x.data(),
                          .act = dtype_of<X>(),
                          .x_stride = k,
                          .w = weight,
                          .columns = columns.data(),
                          .y = y.data(),
                          .y_stride = width,
                          .num_rows = num_rows},
                         pool);
    const std::string what = fmt::format("n {} k {} rows {} {}", n, k, num_rows, weight.pages ? "in pages" : "whole");
    y.expect_intact(what);
    EXPECT_TRUE(same_bits(y.data(), want.data(), num_rows * width)) << what;
  }
}

TEST_P(GemmColumnsTest, EqualsSumsInF64BitForBitAndLeavesOtherColumnsAlone) {
  for (const int64_t n : {1, 31, 32, 100})
    for (const int64_t k : {1, 2, 33, 96})
      for (const int64_t rows : {1, 3, 17}) {
        if (act() == DType::kBF16) {
          check_columns<bf16, bf16>(kernels(), pool(), n, k, rows);
          check_columns<bf16, float>(kernels(), pool(), n, k, rows);
        } else {
          check_columns<float, bf16>(kernels(), pool(), n, k, rows);
          check_columns<float, float>(kernels(), pool(), n, k, rows);
        }
      }
}
TEST_P(GemmColumnsTest, NothingToDoIsANoOp) {
  kernels().gemm_columns(GemmColumnsArgs{}, pool());
  kernels().gemm_columns({.num_rows = 3}, pool());
}
LK_INSTANTIATE_KERNEL_TESTS(GemmColumnsTest);

}  // namespace
}  // namespace lk::testing
