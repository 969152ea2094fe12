// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/pool_audit.h"

#include <gtest/gtest.h>

#include <vector>

namespace lk {

struct PoolCorruption {
  static void lose_adapter_page(UnifiedPool& pool, AdapterId adapter) { pool.adapters_.at(adapter).pages.pop_back(); }
  static void share_page(UnifiedPool& pool, AdapterId from, AdapterId to) {
    pool.adapters_.at(to).pages.push_back(pool.adapters_.at(from).pages.front());
  }
  static void forget_reference(UnifiedPool& pool, PageId page) { pool.kv_[static_cast<size_t>(page)].references = 0; }
};

namespace {

constexpr int64_t kPages = 3 * PoolAudit::kSlicePages / 2;

// Adapters 1 and 2 resident, some KV pages: the first in the first slice of an audit, the last in the second.
class PoolAuditTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const AdapterId id : {1, 2}) {
      ASSERT_TRUE(pool_.begin_load(id, 10));
      pool_.finish_load(id, true);
    }
    for (int64_t i = 0; i < kPages - 100; ++i) kv_.push_back(pool_.alloc_kv().value());
  }
  void whole_round() {
    PoolAudit audit;
    while (!audit.done()) audit.check_slice(pool_);
  }
  UnifiedPool pool_{kPages};
  std::vector<PageId> kv_;
};

TEST_F(PoolAuditTest, ChecksEveryPageOnceUntilSomethingHappens) {
  PoolAudit audit;
  int slices = 0;
  for (; !audit.done(); ++slices) audit.check_slice(pool_);
  EXPECT_EQ(slices, 2);
  EXPECT_EQ(audit.num_checked(), kPages);
  audit.restart();
  EXPECT_FALSE(audit.done());
  audit.check_slice(pool_);
  audit.restart();  // before the second slice: it comes next all the same
  audit.check_slice(pool_);
  EXPECT_EQ(audit.num_checked(), 2 * kPages);
  for (; !audit.done(); ++slices) audit.check_slice(pool_);
  EXPECT_EQ(slices, 3);
}

TEST_F(PoolAuditTest, FindsWhatIsBroken) {
  EXPECT_EXIT((whole_round(), std::exit(0)), ::testing::ExitedWithCode(0), "");
  EXPECT_DEATH((PoolCorruption::lose_adapter_page(pool_, 2), whole_round()), "has 0 owners instead of 1");
  EXPECT_DEATH((PoolCorruption::share_page(pool_, 1, 2), whole_round()), "has 2 owners instead of 1");
  EXPECT_DEATH((PoolCorruption::forget_reference(pool_, kv_.back()), whole_round()), "is unreferenced");
}

}  // namespace
}  // namespace lk
