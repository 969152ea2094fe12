// SPDX-License-Identifier: Apache-2.0
#include "lk/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>

#include "simt/host.h"

namespace lk::cuda {
namespace {

uint16_t to_bf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
double value(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

struct Sequence {
  int first_position, num_rows;  // the chunk; keys of [0, first_position + num_rows)
};
struct Case {
  int head_dim, num_heads, num_kv_heads;
  std::vector<Sequence> sequences;
};

struct Problem {
  Case c;
  std::vector<uint16_t> q, k, v;  // k, v: [sequence's positions, one after the other][num_kv_heads][head_dim]
  std::vector<int> k_begin;       // of each sequence

  explicit Problem(Case with) : c(std::move(with)) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<uint16_t>& values, int n) {
      values.resize(static_cast<size_t>(n));
      for (auto& x : values) x = to_bf16(normal(random));
    };
    int rows = 0, positions = 0;
    for (const Sequence& s : c.sequences) {
      k_begin.push_back(positions);
      rows += s.num_rows;
      positions += s.first_position + s.num_rows;
    }
    fill(q, rows * c.num_heads * c.head_dim);
    fill(k, positions * c.num_kv_heads * c.head_dim);
    fill(v, positions * c.num_kv_heads * c.head_dim);
  }

  // The rows [from, to) of sequence i, all sequences if i < 0.
  std::vector<uint16_t> run(int row_tiles, int num_blocks, int only = -1, int from = 0, int to = 0) const {
    const int kv_width = c.num_kv_heads * c.head_dim, q_width = c.num_heads * c.head_dim,
              group = c.num_heads / c.num_kv_heads;
    const int64_t v_offset = kPageTokens * kv_width, page_stride = 2 * v_offset + 32;
    std::vector<int32_t> page_table;
    std::vector<AttentionTile> tiles;
    std::vector<uint16_t> q_rows;
    std::vector<std::pair<int64_t, std::vector<uint16_t>>> writes;  // into the pool
    int num_pages = 0, rows_before = 0, rows = 0;
    for (size_t i = 0; i < c.sequences.size(); ++i) {
      const Sequence& s = c.sequences[i];
      num_pages += (s.first_position + s.num_rows + kPageTokens - 1) / kPageTokens;
    }
    int next_page = num_pages;  // given out from the last to the first
    for (size_t i = 0; i < c.sequences.size(); rows_before += c.sequences[i++].num_rows) {
      const Sequence& s = c.sequences[i];
      if (only >= 0 && static_cast<size_t>(only) != i) continue;
      const int begin = only >= 0 ? from : 0, end = only >= 0 ? to : s.num_rows;
      const int pages = static_cast<int>(page_table.size());
      for (int p = 0; p < s.first_position + end; ++p) {
        if (p % kPageTokens == 0) page_table.push_back(--next_page);
        for (const bool is_v : {false, true}) {
          const auto& from_matrix = is_v ? v : k;
          const auto at = from_matrix.begin() + (k_begin[i] + p) * kv_width;
          writes.emplace_back(page_table.back() * page_stride + (is_v ? v_offset : 0) + p % kPageTokens * kv_width,
                              std::vector<uint16_t>(at, at + kv_width));
        }
      }
      for (int r = begin; r < end; r += 16 * row_tiles / group)
        tiles.push_back({rows + r - begin, std::min(16 * row_tiles / group, end - r), s.first_position + r, pages});
      q_rows.insert(q_rows.end(), q.begin() + (rows_before + begin) * q_width,
                    q.begin() + (rows_before + end) * q_width);
      rows += end - begin;
    }
    simt::Buffer<uint16_t> pool("pool", static_cast<size_t>(num_pages * page_stride));
    for (const auto& [offset, row] : writes) pool.copy_in(static_cast<size_t>(offset), row);
    const std::vector<int32_t> count = {static_cast<int32_t>(tiles.size())};
    simt::Buffer<uint16_t> q_device("q", std::span<const uint16_t>(q_rows)), y("y", q_rows.size());
    simt::Buffer<int32_t> table("page_table", std::span<const int32_t>(page_table)),
        num_tiles("num_tiles", std::span<const int32_t>(count));
    simt::Buffer<AttentionTile> tiles_device("tiles", std::span<const AttentionTile>(tiles));
    attention({q_device.data(), pool.data(), page_stride, v_offset, table.data(), tiles_device.data(), num_tiles.data(),
               y.data(), c.num_heads, c.num_kv_heads, static_cast<float>(M_LOG2E / std::sqrt(c.head_dim))},
              c.head_dim, row_tiles, num_blocks);
    return y.copy_out();
  }

  double relative_error(const std::vector<uint16_t>& y) const {
    double error = 0, norm = 0;
    size_t row = 0;
    const auto dim = static_cast<size_t>(c.head_dim);
    for (size_t i = 0; i < c.sequences.size(); ++i)
      for (int r = 0; r < c.sequences[i].num_rows; ++r, ++row)
        for (int h = 0; h < c.num_heads; ++h) {
          const auto head = static_cast<size_t>(h * c.num_kv_heads / c.num_heads),
                     q_at = (row * static_cast<size_t>(c.num_heads) + static_cast<size_t>(h)) * dim;
          const auto k_at = [&](int p) {
            return (static_cast<size_t>(k_begin[i] + p) * static_cast<size_t>(c.num_kv_heads) + head) * dim;
          };
          std::vector<double> p(static_cast<size_t>(c.sequences[i].first_position + r + 1));
          double sum = 0;
          for (size_t j = 0; j < p.size(); ++j) {
            for (size_t d = 0; d < dim; ++d) p[j] += value(q[q_at + d]) * value(k[k_at(static_cast<int>(j)) + d]);
            sum += p[j] = std::exp(p[j] / std::sqrt(c.head_dim));
          }
          for (size_t d = 0; d < dim; ++d) {
            double expected = 0;
            for (size_t j = 0; j < p.size(); ++j) expected += p[j] / sum * value(v[k_at(static_cast<int>(j)) + d]);
            error += std::pow(value(y[q_at + d]) - expected, 2);
            norm += expected * expected;
          }
        }
    return std::sqrt(error / norm);
  }
};

class Attention : public testing::TestWithParam<Case> {};

TEST_P(Attention, EqualsTheReferenceAndARowIsTheSameInAnyCompany) {
  const Problem problem(GetParam());
  const Case& c = problem.c;
  const auto y = problem.run(2, 3);
  EXPECT_LT(problem.relative_error(y), 4e-3);  // p and y are rounded to bf16
  for (const auto order : {simt::Order::kReverse, simt::Order::kShuffled}) {
    simt::order = order;
    EXPECT_EQ(problem.run(2, 3), y) << "depends on the order of threads";
  }
  simt::order = simt::Order::kForward;
  EXPECT_EQ(problem.run(1, 1000), y) << "one row tile or two";
  const auto width = static_cast<ptrdiff_t>(c.num_heads * c.head_dim);
  auto row = y.begin();
  for (int i = 0; i < static_cast<int>(c.sequences.size()); ++i) {
    const int rows = c.sequences[static_cast<size_t>(i)].num_rows;
    for (int r = 0; r < rows; r += 3) {  // decoded alone, without the rows behind in the pool
      EXPECT_EQ(problem.run(1, 1, i, r, r + 1), std::vector<uint16_t>(row + r * width, row + (r + 1) * width))
          << "row " << r << " alone";
    }
    row += rows * width;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Attention,
                         testing::Values(Case{64, 8, 2, {{0, 5}, {63, 2}, {64, 1}, {130, 11}, {0, 1}}},
                                         Case{128, 4, 1, {{0, 17}, {80, 3}}}, Case{64, 6, 2, {{20, 9}}},
                                         Case{64, 2, 2, {{3, 20}}}));

}  // namespace
}  // namespace lk::cuda
