// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/local_collective.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "lk/base/rng.h"

namespace lk {
namespace {

// Runs f(end) on a thread for each rank.
template <class F>
void on_ranks(std::vector<std::unique_ptr<Collective>>& ends, const F& f) {
  std::vector<std::thread> threads;
  for (auto& end : ends) threads.emplace_back([&f, &end] { f(*end); });
  for (std::thread& thread : threads) thread.join();
}

float part_of(int rank, int64_t call, int64_t row, int64_t col) {
  const uint64_t bits =
      random_bits(static_cast<uint64_t>(rank), static_cast<uint64_t>((call * 100 + row) * 1000 + col));
  return static_cast<float>(static_cast<double>(bits) * 0x1p-64 - 0.5) * (rank % 2 == 0 ? 1.0f : 1e-3f);
}

// Two matrices at a time with strides, in turn from two buffers that each rank overwrites as soon as it may, with
// threads of its own; every rank gets the sum in the order of the tree.
TEST(LocalCollectiveTest, EveryRankGetsTheTreeSum) {
  constexpr int64_t kRows = 37, kCols = 1100, kStride = 1111, kCalls = 40;
  for (const int size : {1, 2, 4, 8}) {
    auto ends = make_local_collectives(size);
    const auto want = [&](int64_t call, int64_t row, int64_t col) {
      std::vector<float> level;
      for (int rank = 0; rank < size; ++rank) level.push_back(part_of(rank, call, row, col));
      for (size_t step = 1; step < level.size(); step *= 2)
        for (size_t rank = 0; rank < level.size(); rank += 2 * step) level[rank] += level[rank + step];
      return level[0];
    };
    on_ranks(ends, [&](Collective& end) {
      ThreadPool threads(1 + end.rank() % 2);
      std::vector<float> buffers[2], sum(kRows * kStride);
      for (auto& buffer : buffers) buffer.resize(kRows * kStride);
      for (int64_t call = 0; call < kCalls; ++call) {
        const int64_t rows = call % 3 == 0 ? 1 : 1 + (call * 7) % kRows;
        std::vector<float>& buffer = buffers[call % 2];
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t col = 0; col < kCols; ++col)
            buffer[static_cast<size_t>(row * kStride + col)] = part_of(end.rank(), call, row, col);
        std::fill(sum.begin(), sum.end(), -1.0f);
        // The last 100 columns as a matrix of their own, of the first row.
        const std::vector<RankSum> sums{
            {buffer.data(), kStride, sum.data(), kStride, rows, kCols - 100},
            {buffer.data() + kCols - 100, kStride, sum.data() + kCols - 100, kStride, 1, 100}};
        end.sum(sums, threads);
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t col = 0; col < (row == 0 ? kCols : kCols - 100); col += 13)
            ASSERT_EQ(sum[static_cast<size_t>(row * kStride + col)], want(call, row, col))
                << size << " ranks, call " << call << " row " << row << " column " << col;
        ASSERT_EQ(sum[kCols], -1.0f);
      }
      EXPECT_EQ(end.num_sums(), kCalls);
      end.sum({}, threads);  // the others may still read the last parts
    });
  }
}

// A rank that comes much later than the others finds them asleep.
TEST(LocalCollectiveTest, ALateRankWakesTheOthers) {
  auto ends = make_local_collectives(4);
  on_ranks(ends, [&](Collective& end) {
    ThreadPool threads(1);
    for (int call = 0; call < 3; ++call) {
      if (end.rank() == call) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      float part = static_cast<float>(1 << end.rank()), sum = 0;
      end.sum(std::vector<RankSum>{{&part, 1, &sum, 1, 1, 1}}, threads);
      ASSERT_EQ(sum, 15.0f);
      // `part` is on the stack: others may read it until the next call has returned.
      float none = 0, nothing = 0;
      end.sum(std::vector<RankSum>{{&none, 1, &nothing, 1, 1, 1}}, threads);
      end.sum({}, threads);
    }
  });
}

}  // namespace
}  // namespace lk
