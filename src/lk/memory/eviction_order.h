// SPDX-License-Identifier: Apache-2.0
// EvictionOrder: which cached thing goes next when UnifiedPool needs a page.
//
// Two kinds of things are cached: KV pages that no running request holds (a later prompt with the same beginning may
// find them), and adapters that no running request uses. An adapter and the KV pages that were computed with it are a
// family; the base model's pages are one, too. UnifiedPool tells this class when something becomes cached, is used
// again, or is asked for; next() names what should go.
//
// Each cached thing has a priority; the one with the smallest goes:
//
//   priority = clock when it was cached + (cost of bringing one page of it back) x (uses to expect)
//
// When something goes, the clock rises to its priority. So what was cached long ago has a smaller priority than what
// was cached just now, and what is dear or much used keeps its place for longer, but not for ever (Greedy-Dual: Young
// 1994; with frequencies and costs per byte, GDSF: Cherkasova 1998). The uses to expect are those within the next
// kHorizon requests, for pages and adapters alike, so that the two can be compared:
// - KV pages come in two classes: those that some prompt has found again since they were published, and those that none
//   has. A page is expected to be used as often as the pages of its class were lately, by page and request (hit
//   density: Beckmann et al., NSDI 2018). Where prompts share a beginning, the second class is nearly worthless. Where
//   they are turns of conversations, both classes are used alike; then they count as one, and the page that was used
//   longest ago goes first.
// - An adapter is expected to be used as often as it was asked for within the last kHorizon requests, older ones
//   counting less; and at least as often as one of its family's cached KV pages, which are of no use without it.
// FASTLIBRA (arXiv:2505.03756) evicts all KV pages of a family before its adapter; docs/results/scheduling.md compares
// the two.
//
// Cost: the candidate of a class of pages is its oldest, found in O(1); adapters are in a search tree, O(log adapters).
// An adapter's priority is computed again when it is cached or asked for, when the first page of its family is cached
// or the last one goes, and otherwise in turn: one adapter with each request. Nothing is allocated but for a new
// family.
//
// Thread safety: none; owned by UnifiedPool.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "lk/memory/page_pool.h"

namespace lk {

using AdapterId = int32_t;  // a loaded adapter version; never reused
inline constexpr AdapterId kBaseModel = -1;

class EvictionOrder {
 public:
  // Costs are relative to that of copying one page of an adapter from host memory, 1.
  static constexpr double kKvPageCost = 4;  // of computing 16 tokens again
  // Requests that expected uses look ahead, and that what is remembered of demand and hits looks back.
  static constexpr double kHorizon = 1000;
  // Bounds of the expected uses; of an adapter's from below, 1. What nobody asks for any more goes after the clock has
  // risen by kMostUses times its cost.
  static constexpr double kLeastUses = 0.25, kMostUses = 32;

  explicit EvictionOrder(int64_t num_pages);

  // Says what copying one page of an adapter back costs now (it may have a copy in host memory, or be only on disk).
  // Asked whenever an adapter's priority is computed, so it must be cheap. Positive and finite. Default: 1.
  void set_reload_cost(std::function<double(AdapterId)> per_page) { reload_cost_ = std::move(per_page); }

  // A request for the adapter (or the base model) arrived.
  void note_demand(AdapterId adapter);
  // Requests for it among the last kHorizon, the older ones weighing less; less than kHorizon + 1.
  double demand(AdapterId adapter) const;

  // A KV page that nobody references becomes evictable; `found` when somebody found it since it was published.
  void cache_page(PageId page, AdapterId adapter, bool found);
  // And no longer: a hit, or it is gone. Requires: it is cached.
  void uncache_page(PageId page, bool hit);
  void cache_adapter(AdapterId adapter);
  void uncache_adapter(AdapterId adapter);  // Requires: it is cached
  void touch(AdapterId adapter);            // becomes the last adapter to go. Requires: it is cached

  struct Victim {
    AdapterId adapter = kBaseModel;
    PageId page = -1;  // -1: the adapter itself
    double priority = 0;
  };
  // Who goes next, but for the adapters that `kept` names (their KV pages may go).
  std::optional<Victim> next(const std::function<bool(AdapterId)>& kept = {}) const;
  std::optional<Victim> next_page() const;  // the KV page that goes next
  // It goes; uncache_page() or uncache_adapter() must follow.
  void evicting(const Victim& victim);

  int64_t num_cached_pages() const { return classes_[kFresh].count + classes_[kFound].count; }
  std::vector<PageId> pages_of(AdapterId adapter) const;  // cached ones of the family; O(cached pages)
  // Drops what is known of a family. Requires: nothing of it is cached.
  void forget(AdapterId adapter);
  // Calls visit(adapter) for cached adapters, next to go first, until it returns false.
  template <class Visit>
  void for_each_adapter(Visit visit) const {
    for (const Entry& entry : adapters_)
      if (!visit(families_[static_cast<size_t>(entry.family)].id)) return;
  }
  void check_integrity() const;  // aborts on a broken invariant; O(pages + families)

 private:
  enum Class : uint8_t { kFresh, kFound };
  static constexpr size_t kNumClasses = 2;

  struct Page {
    int32_t family = -1;  // -1: not cached
    Class in = kFresh;
    PageId newer = -1, older = -1;
    double base = 0;     // the clock when it was cached
    uint64_t stamp = 0;  // among equals the longer unused goes first
  };
  struct PageClass {
    PageId oldest = -1, newest = -1;
    int64_t count = 0;
    double hits = 0, exposure = 0;  // lately: hits, and the sum of pages over requests
  };
  struct Entry {
    double priority = 0;
    uint64_t stamp = 0;
    int32_t family = -1;
    bool operator<(const Entry& other) const {
      return priority != other.priority ? priority < other.priority : stamp < other.stamp;
    }
  };
  using Adapters = std::set<Entry>;
  struct Family {
    bool known = false;
    AdapterId id = kBaseModel;
    double demand = 0;  // when request number `asked` came
    int64_t asked = 0;
    std::array<int64_t, kNumClasses> num_pages{};
    // Of the adapter while it is cached; otherwise its node of the tree is kept here.
    bool cached = false, listed = false, touched = false;
    double base = 0;
    uint64_t stamp = 0;
    Adapters::iterator place;
    Adapters::node_type node;
  };

  Family& at(int32_t family) { return families_[static_cast<size_t>(family)]; }
  int32_t family_of(AdapterId adapter);
  double demand_now(const Family& family) const;
  double expected_uses(Class of) const;
  double adapter_value(const Family& family);
  void unlist(Family& family);  // its adapter leaves the tree
  void update_adapter(int32_t family);

  const double decay_;  // of what is remembered, per request
  std::function<double(AdapterId)> reload_cost_;
  double clock_ = 0, highest_cost_ = 1;
  uint64_t stamps_ = 0;
  int64_t requests_ = 0;

  std::vector<Page> pages_;
  std::array<PageClass, kNumClasses> classes_;
  std::vector<Family> families_;
  std::vector<int32_t> unused_;  // places in families_
  std::unordered_map<AdapterId, int32_t> index_;
  size_t cursor_ = 0;  // the family whose adapter's priority was computed last in turn
  Adapters adapters_;  // cached ones
};

}  // namespace lk
