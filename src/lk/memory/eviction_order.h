// SPDX-License-Identifier: Apache-2.0
// EvictionOrder: which cached thing goes next. An adapter (or the base model) and the KV pages cached for its prompts
// are a *family*.
//
//   priority = clock at last use + cost to bring one page back x expected uses
//
// What has the least priority goes, and the clock rises to it (Greedy-Dual: Young 1994; with frequencies and costs per
// byte, GDSF: Cherkasova 1998). Expected uses are those in the next `horizon` requests, in one unit for all:
// - Of a KV page, the hits per page and request that its class had lately (hit density: Beckmann et al., NSDI 2018).
//   There are two classes: pages that nobody found again since they were published, and pages that somebody did. Where
//   prompts share a beginning the first class is nearly worthless; conversations make both alike, and then they are one
//   class, in the order of last use.
// - Of an adapter, the demand of its family: requests for it so far, each weighing e^-1 of one that came `horizon`
//   requests later; and at least the expected uses of its family's cached KV pages, which are of no use without it.
// FASTLIBRA (arXiv:2505.03756) goes further and evicts all KV pages before the adapter they need;
// docs/results/scheduling.md has the figures.
//
// The oldest page of a class is its candidate, in O(1); adapters are in a search tree, O(log adapters). An adapter's
// priority is computed when it is cached, when it is asked for, when the first page of its family is cached or the last
// one goes, and else once in as many requests as there are families. Nothing is allocated but for a new family.
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

// Costs are relative to each other.
struct EvictionCosts {
  double kv_page = 4.0;       // recomputing 16 tokens
  double adapter_page = 1.0;  // copying one page from the host tier
  double horizon = 1000;      // requests; of the forecast and of what it remembers
  double least_uses = 0.25;   // bounds of a page's expected uses; of an adapter's, 1
  double most_uses = 32;      // so that what nobody asks for any more goes after a bounded rise of the clock
};

class EvictionOrder {
 public:
  EvictionOrder(int64_t num_pages, const EvictionCosts& costs);

  // Says what copying one page of an adapter back costs now, in the unit of EvictionCosts (it may have a copy in host
  // memory, or be only on disk). Asked whenever an adapter's priority is computed, so it must be cheap. Positive and
  // finite. Default: adapter_page.
  void set_reload_cost(std::function<double(AdapterId)> per_page) { reload_cost_ = std::move(per_page); }

  // A request for the adapter (or the base model) arrived.
  void note_demand(AdapterId adapter);
  // Requests for it among the last `horizon`, the older ones weighing less; less than horizon + 1.
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

  const EvictionCosts costs_;
  const double decay_;  // of what is remembered, per request
  std::function<double(AdapterId)> reload_cost_;
  double clock_ = 0, highest_cost_ = 0;
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
