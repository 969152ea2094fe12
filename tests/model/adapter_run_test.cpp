// SPDX-License-Identifier: Apache-2.0
#include "lk/model/adapter_run.h"

#include <gmock/gmock.h>

#include "lk/base/rng.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using Stretch = std::tuple<int, int64_t, int64_t>;

// Stretches of a number that each adapter stands for; rows of no run have 0.
std::vector<Stretch> stretches(std::span<const AdapterRun> runs, int64_t num_rows) {
  std::vector<Stretch> out;
  for_each_stretch(
      runs, num_rows,
      [](const AdapterRun& run) { return run.adapter ? static_cast<int>(run.adapter->layers.size()) : 0; },
      [&](int value, int64_t begin, int64_t end) { out.emplace_back(value, begin, end); });
  return out;
}

class AdapterRunTest : public ::testing::Test {
 protected:
  AdapterRunTest() {
    one_.layers.resize(1);
    other_one_.layers.resize(1);
    two_.layers.resize(2);
  }
  ResidentAdapter one_, other_one_, two_;
};

TEST_F(AdapterRunTest, RowsThatUseTheSameAreOneStretch) {
  const std::vector<AdapterRun> runs = {{0, 2, nullptr}, {2, 5, &one_}, {5, 6, &other_one_}, {8, 9, &two_}};
  EXPECT_THAT(stretches(runs, 12),
              ElementsAre(Stretch{0, 0, 2}, Stretch{1, 2, 6}, Stretch{0, 6, 8}, Stretch{2, 8, 9}, Stretch{0, 9, 12}));
  EXPECT_THAT(stretches({}, 3), ElementsAre(Stretch{0, 0, 3}));
  EXPECT_TRUE(stretches({}, 0).empty());
  const AdapterRun all{0, 4, &two_};
  EXPECT_THAT(stretches({&all, 1}, 4), ElementsAre(Stretch{2, 0, 4}));
}

TEST_F(AdapterRunTest, ClippedRunsCountFromTheBlock) {
  const std::vector<AdapterRun> runs = {{0, 3, &one_}, {3, 7, &two_}, {9, 12, &one_}};
  std::vector<AdapterRun> out;
  clip_runs(runs, 2, 10, out);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_TRUE(out[0].row_begin == 0 && out[0].row_end == 1 && out[0].adapter == &one_);
  EXPECT_TRUE(out[1].row_begin == 1 && out[1].row_end == 5 && out[1].adapter == &two_);
  EXPECT_TRUE(out[2].row_begin == 7 && out[2].row_end == 8 && out[2].adapter == &one_);
}

// Whatever runs and rows: each gathered row keeps the adapter of its row.
TEST_F(AdapterRunTest, GatheredRowsKeepTheirAdapters) {
  const ResidentAdapter* kinds[] = {nullptr, &one_, &two_};
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    std::vector<const ResidentAdapter*> of_row(30, nullptr);
    std::vector<AdapterRun> runs;
    for (int32_t row = 0; row < 30;) {
      const auto end = static_cast<int32_t>(std::min<uint64_t>(30, static_cast<uint64_t>(row) + 1 + rng.below(6)));
      if (rng.below(4) != 0) {
        runs.push_back({row, end, kinds[rng.below(3)]});
        std::fill(of_row.begin() + row, of_row.begin() + end, runs.back().adapter);
      }
      row = end;
    }
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < 30; ++row)
      if (rng.below(3) == 0) rows.push_back(row);
    std::vector<AdapterRun> gathered;
    gather_runs(runs, rows, gathered);
    std::vector<const ResidentAdapter*> got(rows.size(), nullptr);
    for (const AdapterRun& run : gathered)
      std::fill(got.begin() + run.row_begin, got.begin() + run.row_end, run.adapter);
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(got[i], of_row[static_cast<size_t>(rows[i])]) << "seed " << seed;
  }
}

}  // namespace
}  // namespace lk
