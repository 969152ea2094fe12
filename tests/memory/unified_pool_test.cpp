// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/unified_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>

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

TEST(PagePool, AnyFreePageServes) {
  PagePool pool(4);
  std::vector<PageId> pages(4);
  ASSERT_TRUE(pool.try_alloc(PageUse::kKv, pages));
  EXPECT_EQ(pages, (std::vector<PageId>{0, 1, 2, 3}));
  pool.free(1);
  pool.free(3);
  std::vector<PageId> scattered(2);
  ASSERT_TRUE(pool.try_alloc(PageUse::kAdapter, scattered));
  EXPECT_EQ(scattered, (std::vector<PageId>{3, 1})) << "last freed is first reused";
  EXPECT_EQ(pool.num_used(PageUse::kAdapter), 2);
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
  EXPECT_TRUE(pool.is_cached_kv(page)) << "looking takes no reference";
  pool.reuse_kv(page);
  EXPECT_FALSE(pool.is_cached_kv(page));
  pool.evict_all();
  pool.release_kv(page);
  EXPECT_EQ(pool.find_kv(key_of(1)), page) << "it was in use";
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
  ASSERT_TRUE(pool.begin_load(7, 2));
  EXPECT_EQ(pool.num_available(), 2);
  pool.finish_load(7, true);
  EXPECT_EQ(pool.num_available(), 4);
  pool.pin(7);
  EXPECT_FALSE(pool.begin_load(8, 3));
  pool.unpin(7);
  EXPECT_TRUE(pool.begin_load(8, 3));
  EXPECT_EQ(pool.adapter_state(7), AdapterState::kAbsent);
  pool.finish_load(8, false);
  EXPECT_EQ(pool.num_free(), 4);
  pool.check_integrity();
}

TEST(UnifiedPool, LoadTakesScatteredPagesAndEvictsNoMoreThanItLacks) {
  UnifiedPool pool(6);
  std::vector<PageId> pages;
  for (int32_t n = 0; n < 6; ++n) {
    pages.push_back(*pool.alloc_kv());
    if (n % 2 == 0) pool.publish_kv(pages.back(), key_of(n), kBaseModel);
  }
  for (PageId page : pages) pool.release_kv(page);  // odd ones are free, even ones cached
  EXPECT_EQ(pool.num_free(), 3);
  ASSERT_TRUE(pool.begin_load(1, 4));
  EXPECT_EQ(pool.adapter_pages(1), (std::vector<PageId>{0, 1, 3, 5})) << "in order: neighbours are read faster";
  EXPECT_EQ(pool.num_cached_kv(), 2);
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
          if (auto page = pool.find_kv(key_of(static_cast<int32_t>(rng.below(40))))) {
            pool.reuse_kv(*page);
            held.push_back(*page);
          }
          break;
        case 4:
          if (pool.adapter_state(adapter) == AdapterState::kAbsent) {
            if (pool.begin_load(adapter, static_cast<int64_t>(1 + rng.below(8)))) loading.insert(adapter);
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

// Two pools that are the same in all that anybody can see: counts, states, keys and page numbers.
void expect_same(const UnifiedPool& pool, const UnifiedPool& twin, const std::string& what) {
  static const std::vector<BlockKey> keys = [] {
    std::vector<BlockKey> all;
    for (int32_t n = 0; n < 40; ++n) all.push_back(key_of(n));
    return all;
  }();
  EXPECT_EQ(pool.num_free(), twin.num_free()) << what;
  EXPECT_EQ(pool.num_kv(), twin.num_kv()) << what;
  EXPECT_EQ(pool.num_cached_kv(), twin.num_cached_kv()) << what;
  EXPECT_EQ(pool.num_evictable(), twin.num_evictable()) << what;
  EXPECT_EQ(pool.num_evicted_adapters(), twin.num_evicted_adapters()) << what;
  for (AdapterId adapter = 0; adapter < 8; ++adapter) {
    EXPECT_EQ(pool.adapter_state(adapter), twin.adapter_state(adapter)) << what;
    EXPECT_EQ(pool.num_pins(adapter), twin.num_pins(adapter)) << what;
    EXPECT_EQ(pool.has_merge(adapter), twin.has_merge(adapter)) << what;
    if (pool.adapter_state(adapter) != AdapterState::kAbsent) {
      EXPECT_EQ(pool.adapter_pages(adapter), twin.adapter_pages(adapter)) << what;
    }
  }
  for (const BlockKey& key : keys) EXPECT_EQ(pool.find_kv(key), twin.find_kv(key)) << what;
}

// One of the two hears nothing of what the other refused. They stay the same, down to who goes next and which page
// comes next.
TEST(UnifiedPool, WhatIsRefusedChangesNothing) {
  int64_t refused[4] = {};
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Rng rng(seed);
    const auto num_pages = static_cast<int64_t>(8 + rng.below(24));
    UnifiedPool pool(num_pages), twin(num_pages);
    std::vector<PageId> held;
    for (int step = 0; step < 400; ++step) {
      const auto adapter = static_cast<AdapterId>(rng.below(8));
      const auto n = static_cast<int32_t>(rng.below(40));
      const auto wanted = static_cast<int64_t>(1 + rng.below(static_cast<uint64_t>(num_pages)));
      const auto spare = static_cast<int64_t>(rng.below(6));
      const auto kept = [&](AdapterId other) { return other % 2 == n % 2; };
      const AdapterState state = pool.adapter_state(adapter);
      switch (rng.below(9)) {
        case 0: {
          const std::optional<PageId> page = pool.alloc_kv();
          if (!page) {
            ++refused[0];
            break;
          }
          ASSERT_EQ(twin.alloc_kv(), page);
          held.push_back(*page);
          break;
        }
        case 1:
          if (held.empty()) break;
          std::swap(held[rng.below(held.size())], held.back());
          pool.release_kv(held.back());
          twin.release_kv(held.back());
          held.pop_back();
          break;
        case 2:
          if (held.empty()) break;
          pool.publish_kv(held.back(), key_of(n), adapter);
          twin.publish_kv(held.back(), key_of(n), adapter);
          break;
        case 3: {
          // A look is no use: the twin hears only of those that are followed by one.
          const std::optional<PageId> page = pool.find_kv(key_of(n));
          if (!page || rng.below(2) == 0) break;
          pool.reuse_kv(*page);
          twin.reuse_kv(*page);
          held.push_back(*page);
          break;
        }
        case 4:
          if (state != AdapterState::kAbsent) break;
          if (!pool.begin_load(adapter, wanted))
            ++refused[1];
          else
            ASSERT_TRUE(twin.begin_load(adapter, wanted));
          break;
        case 5:
          if (state != AdapterState::kAbsent) break;
          if (!pool.begin_load_gently(adapter, wanted, kept, spare))
            ++refused[2];
          else
            ASSERT_TRUE(twin.begin_load_gently(adapter, wanted, kept, spare));
          break;
        case 6:
          if (pool.has_merge(adapter)) {
            EXPECT_EQ(pool.release_merge(adapter), twin.release_merge(adapter));
          } else if (!pool.begin_merge(adapter, wanted, spare)) {
            ++refused[3];
          } else {
            ASSERT_TRUE(twin.begin_merge(adapter, wanted, spare));
          }
          break;
        case 7:
          for (UnifiedPool* p : {&pool, &twin}) {
            if (state == AdapterState::kLoading) p->finish_load(adapter, n % 4 != 0);
            if (state == AdapterState::kResident)
              n % 2 == 0 && p->num_pins(adapter) > 0 ? p->unpin(adapter) : p->pin(adapter);
          }
          break;
        case 8:
          pool.note_demand(adapter);
          twin.note_demand(adapter);
          pool.touch(adapter);
          twin.touch(adapter);
          break;
      }
      expect_same(pool, twin, fmt::format("seed {} step {}", seed, step));
    }
    // Who goes, one after the other, until nobody can.
    for (;;) {
      const std::optional<PageId> page = pool.alloc_kv();
      ASSERT_EQ(page, twin.alloc_kv());
      if (!page) break;
      expect_same(pool, twin, fmt::format("seed {}, page {}", seed, *page));
    }
    pool.check_integrity();
  }
  for (int64_t count : refused) EXPECT_GT(count, 20);
}

// A server's pool, full of cached prompts. Whole matrices take thousands of pages: exactly so many are evicted, and
// where there are too few for them, none is.
TEST(UnifiedPool, ThousandsOfPagesCostThousandsOfEvictionsAndARefusalNone) {
  constexpr int64_t kPages = 93'000, kMatrices = 11'000, kInUse = 1'000;
  UnifiedPool pool(kPages);
  std::vector<PageId> pages;
  for (int32_t n = 0; n < kPages; ++n) {
    pages.push_back(*pool.alloc_kv());
    pool.publish_kv(pages.back(), key_of(n), kBaseModel);
  }
  // Every 93rd page stays in use, so that no eleven thousand, nor even a hundred, lie side by side.
  for (int64_t i = 0; i < kPages; ++i)
    if (i % (kPages / kInUse) != 0) pool.release_kv(pages[static_cast<size_t>(i)]);
  ASSERT_EQ(pool.num_cached_kv(), kPages - kInUse);
  EXPECT_FALSE(pool.begin_load(1, kPages - kInUse + 1));
  EXPECT_FALSE(pool.begin_merge(1, kPages - kInUse + 1, 0));
  EXPECT_FALSE(pool.begin_merge(1, kPages - kInUse, 1));
  EXPECT_FALSE(pool.begin_load_gently(1, kMatrices, {}, kPages - kInUse - kMatrices + 1));
  EXPECT_EQ(pool.num_cached_kv(), kPages - kInUse) << "nothing went for what was refused";
  ASSERT_TRUE(pool.begin_load(1, kMatrices));
  EXPECT_EQ(pool.num_cached_kv(), kPages - kInUse - kMatrices);
  ASSERT_TRUE(pool.begin_merge(1, kMatrices, 0));
  EXPECT_EQ(pool.num_cached_kv(), kPages - kInUse - 2 * kMatrices);
  pool.check_integrity();
}

TEST(UnifiedPool, EvictedAdaptersAreToldOnceBeforeTheirPagesAreAnybodyElses) {
  UnifiedPool pool(8);
  std::vector<AdapterId> told;
  pool.set_evicted([&](AdapterId adapter) {
    told.push_back(adapter);
    EXPECT_FALSE(pool.adapter_pages(adapter).empty()) << "they are still its own";
  });
  for (const AdapterId adapter : {1, 2, 3}) {
    ASSERT_TRUE(pool.begin_load(adapter, 2));
    pool.finish_load(adapter, true);
  }
  pool.pin(2);
  ASSERT_TRUE(pool.begin_load(4, 5));
  EXPECT_EQ(told, (std::vector<AdapterId>{1, 3}));
  pool.finish_load(4, false);
  EXPECT_EQ(told.size(), 2u) << "4 never was resident";
  pool.unpin(2);
  pool.forget(2);
  EXPECT_EQ(told, (std::vector<AdapterId>{1, 3, 2}));
  EXPECT_EQ(pool.num_evicted_adapters(), 2) << "2 was forgotten, not evicted";
  pool.check_integrity();
}

TEST(UnifiedPool, MergedLayersTakeCachedPagesButNoAdapters) {
  UnifiedPool pool(20);
  std::vector<PageId> pages;
  for (int32_t i = 0; i < 12; ++i) {
    pages.push_back(*pool.alloc_kv());
    pool.publish_kv(pages.back(), key_of(i), kBaseModel);
  }
  for (int32_t i = 0; i < 12; ++i)
    if (i != 3) pool.release_kv(pages[static_cast<size_t>(i)]);  // pages 0..11, all cached but 3
  ASSERT_TRUE(pool.begin_load(5, 1));
  pool.finish_load(5, true);
  pool.check_integrity();
  EXPECT_FALSE(pool.begin_merge(7, 11, 9)) << "19 pages are available, 11 + 9 are asked for";
  EXPECT_FALSE(pool.begin_merge(7, 19, 0)) << "the 19th is an adapter's";
  EXPECT_FALSE(pool.can_merge(11, 9));
  EXPECT_TRUE(pool.can_merge(11, 9, 1));
  ASSERT_TRUE(pool.begin_merge(7, 11, 8));
  EXPECT_EQ(pool.num_merged(), 11);
  EXPECT_EQ(pool.num_cached_kv(), 7) << "7 pages were free, 4 of 11 cached ones went";
  EXPECT_EQ(pool.adapter_state(5), AdapterState::kResident);
  pool.check_integrity();
  pool.evict_all();
  EXPECT_EQ(pool.num_merged(), 11) << "merged layers are given back by their holder, never evicted";
  EXPECT_EQ(pool.release_merge(7), 11);
  EXPECT_FALSE(pool.has_merge(7));
  pool.release_kv(pages[3]);
  pool.evict_all();
  EXPECT_EQ(pool.num_free(), 20);
  pool.check_integrity();
}

TEST(UnifiedPoolDeathTest, ForgettingAMergedAdapterIsABug) {
  UnifiedPool pool(4);
  ASSERT_TRUE(pool.begin_merge(1, 2, 0));
  EXPECT_DEATH(pool.forget(1), "while merged");
}

}  // namespace
}  // namespace lk
