// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/eviction_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "lk/base/rng.h"

namespace lk {
namespace {

using Victim = EvictionOrder::Victim;

Victim evict(EvictionOrder& order) {
  const Victim victim = *order.next();
  order.evicting(victim);
  if (victim.page >= 0)
    order.uncache_page(victim.page, false);
  else
    order.uncache_adapter(victim.adapter);
  return victim;
}

TEST(EvictionOrder, WithoutDemandTheLongestUnusedAdapterGoesFirst) {
  EvictionOrder order(4);
  for (const AdapterId adapter : {1, 2, 3}) order.cache_adapter(adapter);
  order.uncache_adapter(1);
  order.cache_adapter(1);
  for (const AdapterId adapter : {2, 3, 1}) EXPECT_EQ(evict(order).adapter, adapter);
  EXPECT_FALSE(order.next().has_value());
}

TEST(EvictionOrder, APopularAdapterSurvivesAScanOfOneTimeAdapters) {
  EvictionOrder order(4);
  for (int i = 0; i < 10; ++i) order.note_demand(0);
  order.cache_adapter(0);
  for (AdapterId adapter = 1; adapter <= 8; ++adapter) {
    order.note_demand(adapter);
    order.cache_adapter(adapter);
  }
  for (AdapterId adapter = 9; adapter < 60; ++adapter) {
    EXPECT_EQ(evict(order).adapter, adapter - 8);
    order.note_demand(adapter);
    order.cache_adapter(adapter);
  }
  order.check_integrity();
}

TEST(EvictionOrder, WhatNobodyAsksForAnyMoreGoesAfterABoundedRiseOfTheClock) {
  EvictionOrder order(4);
  for (int i = 0; i < 10'000; ++i) order.note_demand(0);
  EXPECT_LT(order.demand(0), EvictionOrder::kHorizon + 1);
  EXPECT_GT(order.demand(0), EvictionOrder::kHorizon - 1);
  order.cache_adapter(0);
  order.cache_adapter(1);
  int evictions = 0;
  for (AdapterId adapter = 2; evict(order).adapter != 0; ++adapter, ++evictions) {
    order.note_demand(adapter);
    order.cache_adapter(adapter);
    ASSERT_LE(evictions, EvictionOrder::kMostUses) << "one cost of 1 each";
  }
  EXPECT_GT(evictions, 3);
  for (int i = 0; i < 12'000; ++i) order.note_demand(1);
  EXPECT_NEAR(order.demand(0), 0, 0.01);
}

// Without an arrival of its own and without being cached anew, its priority falls all the same.
TEST(EvictionOrder, PrioritiesFollowTheDemandInTurn) {
  EvictionOrder order(4);
  for (int i = 0; i < 200; ++i) order.note_demand(0);
  order.cache_adapter(0);
  for (int i = 0; i < 8; ++i) order.note_demand(1);
  order.cache_adapter(1);
  EXPECT_EQ(order.next()->adapter, 1);
  for (int i = 0; i < 8000; ++i) order.note_demand(2);
  for (int i = 0; i < 3; ++i) order.note_demand(1);
  EXPECT_EQ(order.next()->adapter, 0);
  order.check_integrity();
}

TEST(EvictionOrder, PagesThatNobodyFindsAgainGoBeforeThoseThatSomebodyDoes) {
  EvictionOrder order(100);
  for (PageId page = 0; page < 10; ++page) order.cache_page(page, 0, true);
  for (PageId page = 10; page < 90; ++page) order.cache_page(page, 0, false);
  for (int request = 0; request < 100; ++request) {
    order.note_demand(0);
    for (PageId page = 0; page < 10; ++page) order.uncache_page(page, true), order.cache_page(page, 0, true);
  }
  for (PageId page = 10; page < 90; ++page) EXPECT_EQ(evict(order).page, page);
  order.check_integrity();
}

TEST(EvictionOrder, PagesOfConversationsGoInTheOrderOfLastUse) {
  EvictionOrder order(40);
  for (PageId page = 0; page < 40; ++page) order.cache_page(page, 0, page % 2 == 1);
  // Every page is used as often as any other, whether it was found before or not; a passing adapter moves the clock.
  for (int request = 0; request < 4000; ++request) {
    order.note_demand(0);
    const auto page = static_cast<PageId>(request * 7 % 40);
    order.uncache_page(page, true);
    order.cache_page(page, 0, page % 2 == 1);
    order.cache_adapter(9);
    ASSERT_EQ(evict(order).adapter, 9);
  }
  for (int request = 3960; request < 4000; ++request) EXPECT_EQ(evict(order).page, request * 7 % 40);
}

TEST(EvictionOrder, AnAdapterIsWorthWhatItsFamilysPagesAre) {
  EvictionOrder order(20);
  for (int request = 0; request < 200; ++request) {
    order.note_demand(kBaseModel);
    for (PageId page = 0; page < 4; ++page) {
      if (request > 0) order.uncache_page(page, true);
      order.cache_page(page, kBaseModel, true);
    }
  }
  // Both are asked for once; a page that is found again is cached for one of them.
  for (const AdapterId adapter : {1, 2}) {
    order.note_demand(adapter);
    order.cache_adapter(adapter);
  }
  EXPECT_EQ(order.next()->adapter, 1);
  order.cache_page(10, 1, true);
  EXPECT_EQ(order.next()->adapter, 2);
  order.uncache_page(10, false);
  EXPECT_EQ(order.next()->adapter, 1);
  order.check_integrity();
}

TEST(EvictionOrder, DearAdaptersStayLongerAndATouchedOneLongest) {
  EvictionOrder order(4);
  std::map<AdapterId, double> cost{{1, 1}, {2, 6}, {3, 2}, {4, 1}};
  order.set_reload_cost([&](AdapterId adapter) { return cost.at(adapter); });
  for (const AdapterId adapter : {1, 2, 3, 4}) order.cache_adapter(adapter);
  order.touch(1);
  for (const AdapterId adapter : {4, 3, 2, 1}) EXPECT_EQ(evict(order).adapter, adapter);
  // A copy that fell out of host memory is noticed with the next request.
  for (const AdapterId adapter : {3, 4}) order.cache_adapter(adapter);
  EXPECT_EQ(order.next()->adapter, 4);
  cost[4] = 10;
  order.note_demand(4);
  EXPECT_EQ(order.next()->adapter, 3);
}

TEST(EvictionOrder, KeptAdaptersArePassedOver) {
  EvictionOrder order(4);
  for (const AdapterId adapter : {1, 2}) order.cache_adapter(adapter);
  order.cache_page(0, 1, false);
  EXPECT_EQ(order.next([](AdapterId adapter) { return adapter == 1; })->adapter, 2);
  const Victim victim = *order.next([](AdapterId) { return true; });
  EXPECT_EQ(victim.page, 0) << "its pages are not kept";
}

TEST(EvictionOrder, ForgettingDropsTheDemandAndReusesThePlace) {
  EvictionOrder order(4);
  order.note_demand(1);
  order.cache_page(2, 1, false);
  EXPECT_EQ(order.pages_of(1), std::vector<PageId>{2});
  EXPECT_DEATH(order.forget(1), "while something of it is cached");
  order.uncache_page(2, false);
  order.forget(1);
  EXPECT_EQ(order.demand(1), 0);
  order.note_demand(2);
  order.check_integrity();
}

// The rule once more, summed up anew for each priority and searched for in a list of everything: what the search tree,
// the lists, the running sums and the decayed counters save.
class PlainModel {
 public:
  static constexpr double kHorizon = EvictionOrder::kHorizon;
  struct Cached {
    AdapterId adapter;
    PageId page;  // -1: the adapter
    bool found, touched;
    double base, value;  // value: of an adapter, as computed last
  };
  std::vector<Cached> all;  // longest unused first
  double clock = 0;

  std::vector<Cached>::iterator find(AdapterId adapter, PageId page) {
    return std::find_if(all.begin(), all.end(), [&](const Cached& cached) {
      return cached.page == page && (page >= 0 || cached.adapter == adapter);
    });
  }
  void add(AdapterId adapter, PageId page, bool found, bool touched = false) {
    const bool first = page < 0 || num_pages(adapter, found) == 0;
    know(adapter);
    all.push_back({adapter, page, found, touched, clock, 0});
    if (first) compute(adapter);
  }
  void remove(std::vector<Cached>::iterator cached, bool hit) {
    const Cached gone = *cached;
    all.erase(cached);
    if (gone.page < 0) return;
    if (hit) hits.push_back({requests.size(), gone.found});
    if (num_pages(gone.adapter, gone.found) == 0) compute(gone.adapter);
  }
  void request(AdapterId adapter) {
    requests.push_back(adapter);
    cached_pages.push_back({count(false), count(true)});
    know(adapter);
    compute(adapter);
    turn = (turn + 1) % families.size();
    compute(families[turn]);
  }
  double priority(const Cached& cached) const {
    return cached.base + (cached.page >= 0 ? 4 * page_uses(cached.found) : cached.value);
  }
  const Cached& next() const {
    return *std::min_element(all.begin(), all.end(),
                             [&](const Cached& a, const Cached& b) { return priority(a) < priority(b); });
  }

 private:
  struct Hit {
    size_t requests_before;
    bool found;
  };
  std::vector<AdapterId> requests, families;  // families: in the order they were first heard of
  std::vector<std::array<double, 2>> cached_pages;
  std::vector<Hit> hits;
  size_t turn = 0;

  double weight(size_t request) const { return std::exp(-static_cast<double>(requests.size() - request) / kHorizon); }
  double count(bool found) const {
    return static_cast<double>(std::count_if(
        all.begin(), all.end(), [&](const Cached& cached) { return cached.page >= 0 && cached.found == found; }));
  }
  int64_t num_pages(AdapterId adapter, bool found) const {
    return std::count_if(all.begin(), all.end(), [&](const Cached& cached) {
      return cached.page >= 0 && cached.adapter == adapter && cached.found == found;
    });
  }
  void know(AdapterId adapter) {
    if (std::find(families.begin(), families.end(), adapter) == families.end()) families.push_back(adapter);
  }
  double page_uses(bool found) const {
    const double own = uses_of(found, false), other = uses_of(!found, false);
    return std::clamp(own < 2 * other && other < 2 * own ? uses_of(found, true) : own, 0.25, 32.0);
  }
  double uses_of(bool found, bool both) const {
    double sum = 1, exposure = kHorizon;
    for (const Hit& hit : hits) sum += hit.found == found || both ? weight(hit.requests_before) : 0;
    for (size_t i = 0; i < requests.size(); ++i)
      exposure += (cached_pages[i][found] + (both ? cached_pages[i][!found] : 0)) * weight(i + 1);
    return sum / exposure * kHorizon;
  }
  void compute(AdapterId adapter) {
    const auto cached = find(adapter, -1);
    if (cached == all.end()) return;
    double uses = 0;
    for (size_t i = 0; i < requests.size(); ++i) uses += requests[i] == adapter ? weight(i + 1) : 0;
    uses = std::clamp(uses, 1.0, 32.0);
    for (const bool found : {false, true})
      if (num_pages(adapter, found) > 0) uses = std::max(uses, page_uses(found));
    cached->value = cached->touched ? 32 : uses;
  }
};

TEST(EvictionOrder, AgreesWithThePlainModel) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Rng rng(seed);
    EvictionOrder order(12);
    PlainModel model;
    int evictions = 0;
    for (int step = 0; step < 500; ++step) {
      const auto adapter = static_cast<AdapterId>(rng.below(5)) - 1;
      const auto page = static_cast<PageId>(rng.below(12));
      const auto at_page = model.find(adapter, page), at_adapter = model.find(adapter, -1);
      const bool page_cached = at_page != model.all.end(), adapter_cached = at_adapter != model.all.end();
      switch (rng.below(6)) {
        case 0:
        case 1:
          if (!page_cached) {
            const bool found = rng.below(2) == 0;
            order.cache_page(page, adapter, found);
            model.add(adapter, page, found);
          } else {
            order.uncache_page(page, true);
            model.remove(at_page, true);
          }
          break;
        case 2:
          if (!adapter_cached)
            order.cache_adapter(adapter), model.add(adapter, -1, false);
          else
            order.uncache_adapter(adapter), model.remove(at_adapter, false);
          break;
        case 3:
          order.note_demand(adapter);
          model.request(adapter);
          break;
        case 4:
          if (!adapter_cached || rng.below(3) != 0) break;
          order.touch(adapter);
          model.remove(at_adapter, false);
          model.add(adapter, -1, false, true);
          break;
        case 5: {
          ASSERT_EQ(order.next().has_value(), !model.all.empty());
          if (model.all.empty()) break;
          const double least = model.priority(model.next());
          const Victim victim = evict(order);
          const auto cached = model.find(victim.adapter, victim.page);
          ASSERT_NE(cached, model.all.end());
          ASSERT_EQ(cached->adapter, victim.adapter);
          // Equals are in no order here, so the priorities are compared.
          EXPECT_NEAR(victim.priority, least, 1e-9) << "seed " << seed << " step " << step;
          EXPECT_NEAR(model.priority(*cached), least, 1e-9) << "seed " << seed << " step " << step;
          model.clock = std::max(model.clock, victim.priority);
          model.remove(cached, false);
          ++evictions;
          break;
        }
      }
      order.check_integrity();
    }
    EXPECT_GT(evictions, 30);
  }
}

// The same operations give the same victims.
TEST(EvictionOrder, IsDeterministic) {
  const auto run = [](uint64_t seed) {
    Rng rng(seed);
    EvictionOrder order(64);
    std::vector<std::pair<AdapterId, PageId>> victims;
    std::map<PageId, bool> cached;
    for (int step = 0; step < 3000; ++step) {
      const auto adapter = static_cast<AdapterId>(rng.below(20));
      const auto page = static_cast<PageId>(rng.below(64));
      order.note_demand(adapter);
      if (!cached[page]) order.cache_page(page, adapter, rng.below(2) == 0), cached[page] = true;
      if (rng.below(2) == 0) {
        const Victim victim = evict(order);
        victims.emplace_back(victim.adapter, victim.page);
        if (victim.page >= 0) cached[victim.page] = false;
      }
    }
    return victims;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

}  // namespace
}  // namespace lk
