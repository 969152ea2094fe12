// SPDX-License-Identifier: Apache-2.0
// The LoRA kernels against a scalar double reference: ragged segments, ranks 3, 16 and 64 (and 70: two passes),
// base-only rows, rank rows scattered over pages with unwritten gaps between them. One source for the emulator and for
// a device.
#include "lk/cuda/lora.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <random>

#include "simt/host.h"

namespace lk::cuda {
namespace {

constexpr float kUntouched = 123.25f;
constexpr int kPageGranules = 5;

uint16_t to_bf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
double value(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

struct Segment {
  int slot;  // -1: base only
  int rows;
};
struct Case {
  int in_dim, out_dim, planes;
  bool prefill;
  std::vector<int> ranks;  // of slot 0, 1, ...
  std::vector<Segment> segments;
};

std::vector<uint16_t> random_bf16(std::mt19937& random, size_t n) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(n);
  for (auto& v : values) v = to_bf16(normal(random));
  return values;
}

// Adapters packed into pages in a shuffled order. A row is followed by an unused granule where the page has room.
struct Adapters {
  std::vector<std::vector<uint16_t>> a, b;  // per slot: [rank][in_dim], [rank][out_dim]
  std::vector<Slot> slots;
  std::vector<RowRef> row_refs;
  std::vector<int32_t> page_lists;
  std::vector<std::pair<size_t, std::vector<uint16_t>>> rows;  // where in the pool, what
  size_t pool_elements = 0;

  Adapters(const Case& c, std::mt19937& random) {
    size_t total_rows = 0;
    for (const int rank : c.ranks) total_rows += 2 * static_cast<size_t>(rank);
    std::vector<int32_t> free_pages(total_rows + c.ranks.size());
    for (size_t i = 0; i < free_pages.size(); ++i) free_pages[i] = static_cast<int32_t>(i);
    std::shuffle(free_pages.begin(), free_pages.end(), random);
    pool_elements = free_pages.size() * kPageGranules * kGranule;

    for (const int rank : c.ranks) {
      const auto n = static_cast<size_t>(rank);
      a.push_back(random_bf16(random, n * static_cast<size_t>(c.in_dim)));
      b.push_back(random_bf16(random, n * static_cast<size_t>(c.out_dim)));
      Slot slot{static_cast<int32_t>(page_lists.size()), static_cast<int32_t>(row_refs.size()),
                static_cast<int32_t>(row_refs.size()) + rank, rank, 0.5f + 0.25f * static_cast<float>(slots.size())};
      int granule = kPageGranules;
      const auto pack = [&](const std::vector<uint16_t>& matrix, int width) {
        const int need = (width + kGranule - 1) / kGranule;
        for (int r = 0; r < rank; ++r) {
          if (granule + need > kPageGranules) {
            page_lists.push_back(free_pages.back());
            free_pages.pop_back();
            granule = 0;
          }
          row_refs.push_back({static_cast<uint16_t>(page_lists.size() - 1 - static_cast<size_t>(slot.pages)),
                              static_cast<uint16_t>(granule)});
          rows.emplace_back(
              (static_cast<size_t>(page_lists.back()) * kPageGranules + static_cast<size_t>(granule)) * kGranule,
              std::vector<uint16_t>(matrix.begin() + r * width, matrix.begin() + (r + 1) * width));
          granule += need + 1;
        }
      };
      pack(a.back(), c.in_dim);
      pack(b.back(), c.out_dim);
      slots.push_back(slot);
    }
  }
};

std::vector<Tile> make_tiles(const std::vector<Segment>& segments, int max_rows) {
  std::vector<Tile> tiles;
  int row = 0;
  for (const Segment& s : segments) {
    for (int i = 0; s.slot >= 0 && i < s.rows; i += max_rows)
      tiles.push_back({row + i, static_cast<int16_t>(std::min(max_rows, s.rows - i)), static_cast<int16_t>(s.slot)});
    row += s.rows;
  }
  return tiles;
}

// y of `x` with y filled with kUntouched before. num_blocks less than the work: blocks loop.
std::vector<float> run(const Case& c, const Adapters& adapters, const std::vector<uint16_t>& x, int num_blocks) {
  int num_rows = 0, max_rank = 0;
  for (const Segment& s : c.segments) num_rows += s.rows;
  for (const int rank : c.ranks) max_rank = std::max(max_rank, rank);

  simt::Buffer<uint16_t> pool("pool", adapters.pool_elements);
  for (const auto& [offset, row] : adapters.rows) pool.copy_in(offset, row);
  simt::Buffer<RowRef> row_refs("row_refs", std::span(adapters.row_refs));
  simt::Buffer<int32_t> page_lists("page_lists", std::span(adapters.page_lists));
  simt::Buffer<Slot> slots("slots", std::span(adapters.slots));
  simt::Buffer<uint16_t> x_device("x", std::span(x));
  const auto shrink_tiles = make_tiles(c.segments, c.prefill ? kPrefillRows : kDecodeRows);
  const auto expand_tiles = make_tiles(c.segments, kExpandRows);
  const std::vector<int32_t> counts = {static_cast<int32_t>(shrink_tiles.size()),
                                       static_cast<int32_t>(expand_tiles.size())};
  simt::Buffer<Tile> shrink_list("shrink tiles", std::span(shrink_tiles)),
      expand_list("expand tiles", std::span(expand_tiles));
  simt::Buffer<int32_t> count("tile counts", std::span(counts));
  const int64_t v_stride = max_rank, plane_stride = v_stride * num_rows, y_stride = c.out_dim + 4;
  simt::Buffer<float> v("v", static_cast<size_t>(plane_stride * c.planes));
  const std::vector<float> y_before(static_cast<size_t>(num_rows * y_stride), kUntouched);
  simt::Buffer<float> y("y", std::span(y_before));

  const Pool p{pool.data(), kPageGranules * kGranule, page_lists.data(), row_refs.data(), slots.data()};
  const ShrinkArgs shrink{x_device.data(), c.in_dim, c.in_dim,     p,       shrink_list.data(), count.data(),
                          v.data(),        v_stride, plane_stride, c.planes};
  (c.prefill ? shrink_prefill : shrink_decode)(shrink, num_blocks);
  expand({v.data(), v_stride, plane_stride, c.planes, p, expand_list.data(), count.data() + 1, y.data(), y_stride,
          c.out_dim},
         num_blocks);

  std::vector<float> out;
  const auto padded = y.copy_out();
  for (int row = 0; row < num_rows; ++row) {
    const auto begin = padded.begin() + row * y_stride;
    out.insert(out.end(), begin, begin + c.out_dim);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(begin[c.out_dim + i], kUntouched) << "past the end of row " << row;
  }
  return out;
}

std::vector<double> reference(const Case& c, const Adapters& adapters, const std::vector<uint16_t>& x) {
  std::vector<double> y;
  size_t row = 0;
  for (const Segment& s : c.segments)
    for (int i = 0; i < s.rows; ++i, ++row) {
      std::vector<double> out(static_cast<size_t>(c.out_dim), kUntouched);
      for (size_t r = 0; s.slot >= 0 && r < static_cast<size_t>(c.ranks[static_cast<size_t>(s.slot)]); ++r) {
        const auto slot = static_cast<size_t>(s.slot);
        double v = 0;
        for (size_t k = 0; k < static_cast<size_t>(c.in_dim); ++k)
          v += value(x[row * static_cast<size_t>(c.in_dim) + k]) *
               value(adapters.a[slot][r * static_cast<size_t>(c.in_dim) + k]);
        for (size_t n = 0; n < out.size(); ++n)
          out[n] += adapters.slots[slot].scaling * v * value(adapters.b[slot][r * out.size() + n]);
      }
      y.insert(y.end(), out.begin(), out.end());
    }
  return y;
}

class Lora : public testing::TestWithParam<Case> {};

TEST_P(Lora, EqualsTheReferenceAndDoesNotDependOnTheBatch) {
  const Case& c = GetParam();
  std::mt19937 random(7);
  const Adapters adapters(c, random);
  size_t num_rows = 0;
  for (const Segment& s : c.segments) num_rows += static_cast<size_t>(s.rows);
  const auto in = static_cast<size_t>(c.in_dim), out = static_cast<size_t>(c.out_dim);
  const auto x = random_bf16(random, num_rows * in);
  const auto y = run(c, adapters, x, 3);
  const auto expected = reference(c, adapters, x);

  double error = 0, norm = 0;
  size_t row = 0;
  for (const Segment& s : c.segments)
    for (int i = 0; i < s.rows; ++i, ++row)
      for (size_t n = row * out; n < (row + 1) * out; ++n) {
        if (s.slot < 0) {
          EXPECT_EQ(y[n], kUntouched) << "base-only row " << row;
        }
        error += std::pow(y[n] - expected[n], 2);
        norm += std::pow(expected[n] - kUntouched, 2);
      }
  EXPECT_LE(std::sqrt(error), 3e-5 * std::sqrt(norm));

  for (const auto order : {simt::Order::kReverse, simt::Order::kShuffled}) {
    simt::order = order;
    EXPECT_EQ(run(c, adapters, x, 3), y) << "depends on the order of threads";
  }
  simt::order = simt::Order::kForward;
  EXPECT_EQ(run(c, adapters, x, 40), y) << "depends on the number of blocks";

  // Every row alone, as far as three rows of each segment go.
  row = 0;
  for (const Segment& s : c.segments) {
    for (int i = 0; s.slot >= 0 && i < s.rows; i += std::max(1, s.rows / 2)) {
      Case alone = c;
      alone.segments = {{s.slot, 1}};
      const size_t r = row + static_cast<size_t>(i);
      const std::vector<uint16_t> x_row(x.begin() + static_cast<ptrdiff_t>(r * in),
                                        x.begin() + static_cast<ptrdiff_t>((r + 1) * in));
      const std::vector<float> y_row(y.begin() + static_cast<ptrdiff_t>(r * out),
                                     y.begin() + static_cast<ptrdiff_t>((r + 1) * out));
      EXPECT_EQ(run(alone, adapters, x_row, 1), y_row) << "row " << r << " alone";
    }
    row += static_cast<size_t>(s.rows);
  }
}

const std::vector<Segment> kRagged = {{0, 1}, {-1, 3}, {2, 5}, {1, 19}, {0, 0}, {3, 8}, {2, 2}};
INSTANTIATE_TEST_SUITE_P(
    Decode, Lora,
    testing::Values(
        Case{.in_dim = 264,
             .out_dim = 320,
             .planes = 1,
             .prefill = false,
             .ranks = {3, 16, 64, 70},
             .segments = kRagged},
        Case{
            .in_dim = 600, .out_dim = 64, .planes = 2, .prefill = false, .ranks = {3, 16, 64, 70}, .segments = kRagged},
        Case{.in_dim = 8, .out_dim = 64, .planes = 1, .prefill = false, .ranks = {1}, .segments = {{0, 1}}},
        Case{.in_dim = 8, .out_dim = 64, .planes = 1, .prefill = false, .ranks = {1}, .segments = {}}));
INSTANTIATE_TEST_SUITE_P(Prefill, Lora,
                         testing::Values(Case{.in_dim = 200,
                                              .out_dim = 64,
                                              .planes = 1,
                                              .prefill = true,
                                              .ranks = {3, 16, 64, 70},
                                              .segments = {{0, 67}, {-1, 2}, {3, 17}, {2, 1}}}));

}  // namespace
}  // namespace lk::cuda
