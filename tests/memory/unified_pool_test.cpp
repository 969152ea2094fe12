// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/unified_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "lk/base/rng.h"

namespace lk {
namespace {

BlockKey key_of(int32_t n) { return child_block_key(root_block_key(kBaseModel, 0), std::span(&n, 1)); }

TEST(PagePool, TryAllocFailsWhenFewerPagesAreFree) {
  PagePool pool(3);
  std::vector<PageId> pages(4);
  EXPECT_FALSE(pool.try_alloc(PageUse::kKv, pages));
  EXPECT_EQ(pool.num_free(), 3);
  pages.resize(3);
  EXPECT_TRUE(pool.try_alloc(PageUse::kKv, pages));
  EXPECT_FALSE(pool.try_alloc(PageUse::kKv).has_value());
  pool.free(pages);
  pool.check_integrity();
}

TEST(PagePool, RunIsContiguousAndAvoidsTakenPages) {
  PagePool pool(10);
  const PageId low = *pool.try_alloc(PageUse::kKv);
  EXPECT_EQ(low, 0);
  EXPECT_EQ(*pool.try_alloc_run(PageUse::kAdapter, 4), 6);
  EXPECT_FALSE(pool.try_alloc_run(PageUse::kAdapter, 6).has_value());
  EXPECT_EQ(*pool.try_alloc_run(PageUse::kAdapter, 5), 1);
  pool.check_integrity();
}

TEST(PagePoolDeathTest, FreeingTwiceIsABug) {
  PagePool pool(2);
  const PageId page = *pool.try_alloc(PageUse::kKv);
  pool.free(page);
  EXPECT_DEATH(pool.free(page), "freed twice");
}

TEST(UnifiedPool, PublishedPageSurvivesItsReaderAndIsFoundAgain) {
  UnifiedPool pool(2);
  const PageId page = *pool.alloc_kv();
  pool.publish_kv(page, key_of(1), kBaseModel);
  pool.release_kv(page);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.find_kv(key_of(1)), page);
  pool.release_kv(page);
  pool.evict_all();
  EXPECT_FALSE(pool.find_kv(key_of(1)).has_value());
  EXPECT_EQ(pool.num_free(), 2);
  pool.check_integrity();
}

TEST(UnifiedPool, KeysSeparateAdaptersAndSalts) {
  EXPECT_NE(root_block_key(1, 0), root_block_key(2, 0));
  EXPECT_NE(root_block_key(1, 0), root_block_key(1, 7));
}

TEST(UnifiedPool, EvictsTheOldestCachedPageFirst) {
  UnifiedPool pool(2);
  for (int32_t n : {1, 2}) {
    const PageId page = *pool.alloc_kv();
    pool.publish_kv(page, key_of(n), kBaseModel);
    pool.release_kv(page);
  }
  ASSERT_TRUE(pool.alloc_kv().has_value());
  EXPECT_FALSE(pool.find_kv(key_of(1)).has_value());
  EXPECT_TRUE(pool.find_kv(key_of(2)).has_value());
}

TEST(UnifiedPool, PinnedAndLoadingAdaptersAreNeverEvicted) {
  UnifiedPool pool(4);
  ASSERT_TRUE(pool.begin_load(7, {.num_pages = 2}));
  EXPECT_EQ(pool.num_available(), 2);
  pool.finish_load(7, true);
  EXPECT_EQ(pool.num_available(), 4);
  pool.pin(7);
  EXPECT_FALSE(pool.begin_load(8, {.num_pages = 3}));
  pool.unpin(7);
  EXPECT_TRUE(pool.begin_load(8, {.num_pages = 3}));
  EXPECT_EQ(pool.adapter_state(7), AdapterState::kAbsent);
  pool.finish_load(8, false);
  EXPECT_EQ(pool.num_free(), 4);
  pool.check_integrity();
}

TEST(UnifiedPool, RunEvictsUntilPagesAreContiguous) {
  UnifiedPool pool(6);
  std::vector<PageId> pages;
  for (int32_t n = 0; n < 6; ++n) {
    pages.push_back(*pool.alloc_kv());
    if (n % 2 == 0) pool.publish_kv(pages.back(), key_of(n), kBaseModel);
  }
  for (PageId page : pages) pool.release_kv(page);  // odd ones are free, even ones cached
  EXPECT_EQ(pool.num_free(), 3);
  ASSERT_TRUE(pool.begin_load(1, {.num_pages = 1, .run_length = 3}));
  pool.check_integrity();
}

// Random operations against a model of who holds what; integrity after each.
TEST(UnifiedPool, RandomOperationsKeepEveryInvariant) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed);
    UnifiedPool pool(32);
    std::vector<PageId> held;
    std::map<AdapterId, int64_t> pins;
    std::set<AdapterId> loading;
    for (int step = 0; step < 600; ++step) {
      const auto adapter = static_cast<AdapterId>(rng.below(8));
      switch (rng.below(7)) {
        case 0:
          if (auto page = pool.alloc_kv())
            held.push_back(*page);
          else
            EXPECT_EQ(pool.num_available(), 0);
          break;
        case 1:
          if (!held.empty()) {
            std::swap(held[rng.below(held.size())], held.back());
            pool.release_kv(held.back());
            held.pop_back();
          }
          break;
        case 2:
          if (!held.empty())
            pool.publish_kv(held[rng.below(held.size())], key_of(static_cast<int32_t>(rng.below(40))), kBaseModel);
          break;
        case 3:
          if (auto page = pool.find_kv(key_of(static_cast<int32_t>(rng.below(40))))) held.push_back(*page);
          break;
        case 4:
          if (pool.adapter_state(adapter) == AdapterState::kAbsent) {
            const AdapterFootprint footprint{.num_pages = static_cast<int64_t>(1 + rng.below(5)),
                                             .run_length = static_cast<int64_t>(rng.below(4))};
            if (pool.begin_load(adapter, footprint)) loading.insert(adapter);
          } else if (loading.contains(adapter)) {
            pool.finish_load(adapter, rng.below(4) != 0);
            loading.erase(adapter);
          }
          break;
        case 5:
          if (pool.adapter_state(adapter) == AdapterState::kResident) pool.pin(adapter), ++pins[adapter];
          break;
        case 6:
          if (pins[adapter] > 0) pool.unpin(adapter), --pins[adapter];
          break;
      }
      for (const auto& [id, count] : pins) {
        EXPECT_TRUE(count == 0 || pool.adapter_state(id) == AdapterState::kResident);
      }
      pool.check_integrity();
    }
    for (PageId page : held) pool.release_kv(page);
    for (const auto& [id, count] : pins)
      for (int64_t i = 0; i < count; ++i) pool.unpin(id);
    for (AdapterId id : loading) pool.finish_load(id, true);
    pool.evict_all();
    EXPECT_EQ(pool.num_free(), 32);
    pool.check_integrity();
  }
}

TEST(UnifiedPool, MergedLayersTakeRunsThroughCachedPagesButNotThroughAdapters) {
  UnifiedPool pool(20);
  std::vector<PageId> pages;
  for (int32_t i = 0; i < 12; ++i) {
    pages.push_back(*pool.alloc_kv());
    pool.publish_kv(pages.back(), key_of(i), kBaseModel);
  }
  for (int32_t i = 0; i < 12; ++i)
    if (i != 3) pool.release_kv(pages[static_cast<size_t>(i)]);  // pages 0..11, all cached but 3
  ASSERT_TRUE(pool.begin_load(5, {.num_pages = 1, .run_length = 0}));
  pool.finish_load(5, true);  // page 12
  pool.check_integrity();
  const std::vector<int64_t> runs{5, 0, 6};
  EXPECT_FALSE(pool.begin_merge(7, runs, 9)) << "19 pages are available, 11 + 9 are asked for";
  ASSERT_TRUE(pool.begin_merge(7, runs, 8));
  const MergePages& merge = pool.merge_pages(7);
  EXPECT_EQ(merge.run_begin, (std::vector<PageId>{15, -1, 6}));
  EXPECT_EQ(pool.num_merged(), 11);
  EXPECT_EQ(pool.num_cached_kv(), 5) << "0 1 2 4 5 stay";
  EXPECT_EQ(pool.adapter_state(5), AdapterState::kResident);
  pool.check_integrity();
  pool.evict_all();
  EXPECT_EQ(pool.num_merged(), 11) << "merged layers are given back by their holder, never evicted";
  EXPECT_EQ(pool.release_merge(7), 11);
  EXPECT_FALSE(pool.has_merge(7));
  pool.release_kv(3);
  pool.evict_all();
  EXPECT_EQ(pool.num_free(), 20);
  pool.check_integrity();
}

TEST(UnifiedPool, MergeThatFindsNoRunTakesNothing) {
  UnifiedPool pool(10);
  std::vector<PageId> pages;
  for (int i = 0; i < 6; ++i) pages.push_back(*pool.alloc_kv());
  for (PageId page : {0, 1, 2, 3}) pool.release_kv(page);  // free: 0..3 and 6..9
  EXPECT_FALSE(pool.begin_merge(1, std::vector<int64_t>{4, 3, 1, 1}, 0)) << "nine of eight";
  EXPECT_FALSE(pool.begin_merge(1, std::vector<int64_t>{3, 3, 2}, 0)) << "eight free pages, but only two runs of four";
  EXPECT_FALSE(pool.has_merge(1));
  EXPECT_EQ(pool.num_free(), 8);
  EXPECT_TRUE(pool.begin_merge(1, std::vector<int64_t>{4, 4}, 0));
  EXPECT_FALSE(pool.alloc_kv().has_value());
  EXPECT_EQ(pool.release_merge(1), 8);
  EXPECT_TRUE(pool.alloc_kv().has_value());
  pool.check_integrity();
}

TEST(UnifiedPoolDeathTest, ForgettingAMergedAdapterIsABug) {
  UnifiedPool pool(4);
  ASSERT_TRUE(pool.begin_merge(1, std::vector<int64_t>{2}, 0));
  EXPECT_DEATH(pool.forget(1), "while merged");
}

}  // namespace
}  // namespace lk
