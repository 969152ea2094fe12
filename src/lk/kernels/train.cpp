// SPDX-License-Identifier: Apache-2.0
// The kernels of training that are bound by memory, or small: plain code that the compiler turns into vectors, the same
// on every instruction set.
//
// Sums over rows: threads own columns, and each takes the rows in ascending order.
#include "lk/kernels/train.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "lk/base/rng.h"

namespace lk {
namespace {

// Below this many elements waking other threads costs more than the work.
constexpr int64_t kSerialElements = 16384;
constexpr int64_t kCols = 512;  // of one work item

template <class F>
void for_items(ThreadPool& pool, bool serial, int64_t num_items, const F& f) {
  if (!serial) return pool.for_each(num_items, f);
  for (int64_t item = 0; item < num_items; ++item) f(item);
}
// f(begin, end) over blocks of [0, n); `work` is about how many elements are touched.
template <class F>
void for_blocks(ThreadPool& pool, int64_t work, int64_t n, int64_t block, const F& f) {
  for_items(pool, work <= kSerialElements, (n + block - 1) / block,
            [&](int64_t item) { f(item * block, std::min((item + 1) * block, n)); });
}

float as_float(float x) { return x; }
float as_float(bf16 x) { return static_cast<float>(x); }

// f(pointer to the first element): for arrays of activations.
template <class F>
void with_act(const void* x, DType type, const F& f) {
  if (type == DType::kF32)
    f(static_cast<const float*>(x));
  else
    f(static_cast<const bf16*>(x));
}
template <class F>
void with_act(void* x, DType type, const F& f) {
  if (type == DType::kF32)
    f(static_cast<float*>(x));
  else
    f(static_cast<bf16*>(x));
}

}  // namespace

void scatter_rows(const ScatterRowsArgs& a, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(a.rows.size());
  for_blocks(pool, num_rows * a.dim, a.dim, kCols, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t to = a.rows[static_cast<size_t>(row)];
      if (to < 0) continue;
      const float* x = a.x + row * a.x_stride;
      float* gradient = a.gradient + to * a.gradient_stride;
      for (int64_t j = begin; j < end; ++j) gradient[j] += x[j];
    }
  });
}

void embedding_delta_backward(const EmbeddingDeltaBackwardArgs& a, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(a.tokens.size());
  const auto at = [&](int64_t row) { return static_cast<int64_t>(a.tokens[static_cast<size_t>(row)]); };
  // Of a: one f64 sum over the dimensions per row and rank, then the rows in order.
  std::vector<float> sums(static_cast<size_t>(num_rows * a.rank));
  for_blocks(pool, num_rows * a.dim * a.rank, num_rows, 1, [&](int64_t row, int64_t) {
    std::vector<double> sum(static_cast<size_t>(a.rank));
    const float* dy = a.dy + row * a.dy_stride;
    for (int64_t j = 0; j < a.dim; ++j) {
      const auto d = static_cast<double>(dy[j]);
      for (int64_t r = 0; r < a.rank; ++r) sum[static_cast<size_t>(r)] += static_cast<double>(a.b[j * a.rank + r]) * d;
    }
    for (int64_t r = 0; r < a.rank; ++r)
      sums[static_cast<size_t>(row * a.rank + r)] =
          static_cast<float>(static_cast<double>(a.scaling) * sum[static_cast<size_t>(r)]);
  });
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t r = 0; r < a.rank; ++r)
      a.a_gradient[r * a.vocab_size + at(row)] += sums[static_cast<size_t>(row * a.rank + r)];
  // Of b: threads own dimensions.
  std::vector<float> columns(sums.size());  // a[:, token] of every row
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t r = 0; r < a.rank; ++r)
      columns[static_cast<size_t>(row * a.rank + r)] = a.a[r * a.vocab_size + at(row)];
  for_blocks(pool, num_rows * a.dim * a.rank, a.dim, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* column = columns.data() + row * a.rank;
      for (int64_t j = begin; j < end; ++j) {
        const float d = a.scaling * a.dy[row * a.dy_stride + j];
        for (int64_t r = 0; r < a.rank; ++r) a.b_gradient[j * a.rank + r] += d * column[r];
      }
    }
  });
}

void take_columns(const TakeColumnsArgs& a, ThreadPool& pool) {
  with_act(a.x, a.act, [&](auto* x) {
    for_blocks(pool, a.num_rows * a.num_columns, a.num_rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t j = 0; j < a.num_columns; ++j) {
          auto& value = x[row * a.x_stride + a.columns[j]];
          a.c[row * a.c_stride + j] = as_float(value);
          value = {};
        }
      }
    });
  });
}

namespace {

// Four elements of a row share 64 random bits: element j has the 16 from bit 16 (j % 4) on of number j / 4. An element
// is dropped when its 16 bits are less than `below`, so p is rounded to a multiple of 2^-16.
struct DropoutRow {
  uint64_t seed;
  uint32_t below;
  float scale;
};
DropoutRow dropout_row(const DropoutRows& rows, int64_t row) {
  const auto position = static_cast<uint64_t>(rows.first_position + row - rows.begin);
  const auto below = std::min<uint32_t>(static_cast<uint32_t>(std::lround(static_cast<double>(rows.p) * 65536)), 65535);
  return {random_bits(rows.key, position), below, static_cast<float>(65536 / (65536 - static_cast<double>(below)))};
}

template <class X, class Y, bool kAdd>
void drop(const DropoutRow& row, const X* x, Y* y, int64_t dim) {
  constexpr int64_t kChunk = 64;
  for (int64_t first = 0; first < dim; first += kChunk) {
    uint64_t bits[kChunk / 4];
    uint16_t draws[kChunk];
    for (int64_t i = 0; i < kChunk / 4; ++i) bits[i] = mix64(row.seed + static_cast<uint64_t>(first / 4 + i));
    std::memcpy(draws, bits, sizeof bits);
    const int64_t count = std::min(kChunk, dim - first);
    for (int64_t i = 0; i < count; ++i) {
      const float value = as_float(x[first + i]) * (draws[i] < row.below ? 0.0f : row.scale);
      if constexpr (kAdd)
        y[first + i] += value;
      else
        y[first + i] = Y(value);
    }
  }
}

}  // namespace

void dropout(const DropoutArgs& a, ThreadPool& pool) {
  for (const DropoutRows& rows : a.rows) {
    for_blocks(pool, (rows.end - rows.begin) * a.dim, rows.end - rows.begin, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = rows.begin + begin; row < rows.begin + end; ++row) {
        const DropoutRow drop_row = dropout_row(rows, row);
        with_act(a.x, a.x_dtype, [&](auto* x) {
          with_act(a.y, a.y_dtype, [&](auto* y) {
            using X = std::remove_cvref_t<decltype(*x)>;
            using Y = std::remove_cvref_t<decltype(*y)>;
            if (!a.add)
              drop<X, Y, false>(drop_row, x + row * a.x_stride, y + row * a.y_stride, a.dim);
            else if constexpr (std::is_same_v<Y, float>)
              drop<X, Y, true>(drop_row, x + row * a.x_stride, y + row * a.y_stride, a.dim);
          });
        });
      }
    });
  }
}

void row_squares(const RowSquaresArgs& a, ThreadPool& pool) {
  const int64_t panel_bytes = a.w.panel_bytes();
  for_blocks(pool, a.w.n * a.w.k, (a.w.n + kPanelCols - 1) / kPanelCols, 1, [&](int64_t panel, int64_t) {
    std::array<double, kPanelCols> sum = {};
    const auto add = [&](int64_t col, float value) {
      sum[static_cast<size_t>(col)] += static_cast<double>(value) * static_cast<double>(value);
    };
    for (int64_t at = panel * panel_bytes; at < (panel + 1) * panel_bytes; at += kPanelStepBytes) {
      const std::byte* step = panel_bytes_at(a.w, at).data;
      switch (a.w.format) {
        case WeightFormat::kBF16Panels:
          for (int64_t col = 0; col < kPanelCols; ++col)
            for (int64_t i = 0; i < 2; ++i) add(col, as_float(reinterpret_cast<const bf16*>(step)[2 * col + i]));
          break;
        case WeightFormat::kF32Panels:
          for (int64_t col = 0; col < kPanelCols; ++col) add(col, reinterpret_cast<const float*>(step)[col]);
          break;
      }
    }
    for (int64_t col = 0; col < std::min(kPanelCols, a.w.n - panel * kPanelCols); ++col)
      a.squares[panel * kPanelCols + col] = static_cast<float>(sum[static_cast<size_t>(col)]);
  });
}

void dora_scales(const DoraScalesArgs& a, ThreadPool& pool) {
  std::vector<double> gram(static_cast<size_t>(a.rank * a.rank));  // a a^T
  for_blocks(pool, a.rank * a.rank * a.k, a.rank, 1, [&](int64_t r, int64_t) {
    for (int64_t q = 0; q <= r; ++q) {
      std::array<double, 8> sum = {};
      for (int64_t i = 0; i < a.k; ++i)
        sum[static_cast<size_t>(i % 8)] +=
            static_cast<double>(a.a[r * a.k + i]) * static_cast<double>(a.a[q * a.k + i]);
      double total = 0;
      for (const double part : sum) total += part;
      gram[static_cast<size_t>(r * a.rank + q)] = gram[static_cast<size_t>(q * a.rank + r)] = total;
    }
  });
  const auto scaling = static_cast<double>(a.scaling);
  for_blocks(pool, a.n * a.rank * a.rank, a.n, 64, [&](int64_t begin, int64_t end) {
    std::array<double, 64> cross = {}, square = {}, inner;
    for (int64_t r = 0; r < a.rank; ++r) {
      inner = {};
      for (int64_t q = 0; q < a.rank; ++q)
        for (int64_t j = begin; j < end; ++j)
          inner[static_cast<size_t>(j - begin)] +=
              gram[static_cast<size_t>(r * a.rank + q)] * static_cast<double>(a.b[q * a.n + j]);
      for (int64_t j = begin; j < end; ++j) {
        const auto i = static_cast<size_t>(j - begin);
        const auto b = static_cast<double>(a.b[r * a.n + j]);
        cross[i] += b * static_cast<double>(a.products[r * a.products_stride + j]);
        square[i] += b * inner[i];
      }
    }
    for (int64_t j = begin; j < end; ++j) {
      const auto i = static_cast<size_t>(j - begin);
      const double norm = std::sqrt(
          std::max(0.0, static_cast<double>(a.squares[j]) + 2 * scaling * cross[i] + scaling * scaling * square[i]));
      a.norms[j] = static_cast<float>(norm);
      a.scales[j] = static_cast<float>(static_cast<double>(a.magnitudes[j]) / norm);
    }
  });
}

void dora_magnitude_grad(const DoraMagnitudeGradArgs& a, ThreadPool& pool) {
  with_act(a.dy, a.dy_dtype, [&](auto* dy) {
    for_blocks(pool, a.num_rows * a.n, a.n, kCols, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < a.num_rows; ++row) {
        const float* y = a.y + row * a.y_stride;
        for (int64_t j = begin; j < end; ++j)
          a.gradient[j] += as_float(dy[row * a.dy_stride + j]) * y[j] / a.magnitudes[j];
      }
    });
  });
}

void column_sum(const ColumnSumArgs& a, ThreadPool& pool) {
  with_act(a.x, a.x_dtype, [&](auto* x) {
    for_blocks(pool, a.num_rows * a.n, a.n, kCols, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < a.num_rows; ++row)
        for (int64_t j = begin; j < end; ++j) a.gradient[j] += a.scale * as_float(x[row * a.x_stride + j]);
    });
  });
}

void fold_modules(const ModuleScalesArgs& a, ThreadPool& pool) {
  for_blocks(pool, a.rank * a.n, a.n, kCols, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a.rank; ++r) {
      const float* sigma = a.sigma + r / a.module_rank * a.n;
      for (int64_t j = begin; j < end; ++j) a.folded[r * a.n + j] = a.b[r * a.n + j] * sigma[j];
    }
  });
}

void unfold_modules(const ModuleScalesArgs& a, ThreadPool& pool) {
  for_blocks(pool, a.rank * a.n, a.n, kCols, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a.rank; ++r) {
      const int64_t module = r / a.module_rank * a.n;
      for (int64_t j = begin; j < end; ++j) {
        float& g = a.folded[r * a.n + j];
        a.sigma_gradient[module + j] += g * a.b[r * a.n + j];
        g *= a.sigma[module + j];
      }
    }
  });
}

double sum_squares(const float* x, int64_t n, ThreadPool& pool) {
  constexpr int64_t kBlock = 65536;
  std::vector<double> sums(static_cast<size_t>((n + kBlock - 1) / kBlock));
  for_blocks(pool, n, n, kBlock, [&](int64_t begin, int64_t end) {
    // Eight chains, whose additions need not wait for each other.
    std::array<double, 8> sum = {};
    const auto add = [&](int64_t i, size_t chain) {
      const auto value = static_cast<double>(x[i]);
      sum[chain] += value * value;
    };
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
#pragma GCC unroll 8
      for (size_t chain = 0; chain < 8; ++chain) add(i + static_cast<int64_t>(chain), chain);
    }
    for (size_t chain = 0; i < end; ++i, ++chain) add(i, chain);
    for (const double part : sum) sums[static_cast<size_t>(begin / kBlock)] += part;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void fill(float* x, int64_t n, float value, ThreadPool& pool) {
  for_blocks(pool, n, n, int64_t{1} << 16, [&](int64_t begin, int64_t end) { std::fill(x + begin, x + end, value); });
}

}  // namespace lk
