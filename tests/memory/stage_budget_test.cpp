// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/stage_budget.h"

#include <gtest/gtest.h>

#include <set>

namespace lk {
namespace {

TEST(StageBudget, HoldsHalfOfTheTier) {
  StageBudget budget;
  std::set<AdapterId> dropped;
  const auto stage = [&](AdapterId adapter, int64_t bytes) {
    return budget.stage(adapter, bytes, 100, [&](AdapterId id) { return dropped.contains(id); });
  };
  EXPECT_TRUE(stage(1, 30));
  EXPECT_FALSE(stage(1, 30)) << "it is staged already";
  EXPECT_TRUE(stage(2, 20));
  EXPECT_FALSE(stage(3, 1)) << "half is full";
  EXPECT_EQ(budget.bytes(), 50);
  budget.done(1);  // its load began: it is no longer ahead of need
  EXPECT_TRUE(stage(3, 30));
  dropped.insert(2);
  EXPECT_FALSE(stage(4, 60)) << "never more than half";
  EXPECT_EQ(budget.bytes(), 30) << "what was dropped no longer counts";
  EXPECT_TRUE(stage(2, 20)) << "and is staged again when somebody still wants it";
  dropped.clear();
  EXPECT_FALSE(stage(2, 20));
  budget.done(2);
  EXPECT_TRUE(stage(5, 20));
  budget.done(77);  // of nobody: nothing happens
  EXPECT_EQ(budget.bytes(), 50);
}

}  // namespace
}  // namespace lk
