// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/eviction_order.h"

#include <algorithm>
#include <cmath>

#include "lk/base/check.h"

namespace lk {
namespace {

// Classes of pages whose expected uses differ by less than this count as one: noise must not disturb the order of last
// use.
constexpr double kAlike = 2;

}  // namespace

EvictionOrder::EvictionOrder(int64_t num_pages)
    : decay_(std::exp(-1 / kHorizon)), pages_(static_cast<size_t>(num_pages)) {}

int32_t EvictionOrder::family_of(AdapterId adapter) {
  const auto [it, added] = index_.emplace(adapter, -1);
  if (!added) return it->second;
  if (unused_.empty()) {
    unused_.push_back(static_cast<int32_t>(families_.size()));
    families_.emplace_back();
  }
  it->second = unused_.back();
  unused_.pop_back();
  at(it->second).known = true;
  at(it->second).id = adapter;
  return it->second;
}

void EvictionOrder::forget(AdapterId adapter) {
  const auto it = index_.find(adapter);
  if (it == index_.end()) return;
  Family& family = at(it->second);
  LK_CHECK(!family.cached && family.num_pages[kFresh] + family.num_pages[kFound] == 0,
           "family {} is forgotten while something of it is cached", adapter);
  family = Family();
  unused_.push_back(it->second);
  index_.erase(it);
}

// --- Expected uses

double EvictionOrder::demand_now(const Family& family) const {
  return family.demand * std::exp(static_cast<double>(family.asked - requests_) / kHorizon);
}

double EvictionOrder::demand(AdapterId adapter) const {
  const auto it = index_.find(adapter);
  return it == index_.end() ? 0 : demand_now(families_[static_cast<size_t>(it->second)]);
}

void EvictionOrder::note_demand(AdapterId adapter) {
  ++requests_;
  for (PageClass& pages : classes_) {
    pages.hits *= decay_;
    pages.exposure = pages.exposure * decay_ + static_cast<double>(pages.count);
  }
  const int32_t asked = family_of(adapter);
  at(asked).demand = demand_now(at(asked)) + 1;
  at(asked).asked = requests_;
  update_adapter(asked);
  cursor_ = (cursor_ + 1) % families_.size();
  update_adapter(static_cast<int32_t>(cursor_));
}

double EvictionOrder::expected_uses(Class of) const {
  // One use is expected until there is evidence, with the weight of a page that was there for one horizon.
  const auto per_horizon = [&](double hits, double exposure) { return (hits + 1) / (exposure + kHorizon) * kHorizon; };
  const PageClass &fresh = classes_[kFresh], &found = classes_[kFound];
  const double of_fresh = per_horizon(fresh.hits, fresh.exposure), of_found = per_horizon(found.hits, found.exposure);
  const bool alike = std::max(of_fresh, of_found) < kAlike * std::min(of_fresh, of_found);
  const double uses = alike          ? per_horizon(fresh.hits + found.hits, fresh.exposure + found.exposure)
                      : of == kFresh ? of_fresh
                                     : of_found;
  return std::clamp(uses, kLeastUses, kMostUses);
}

double EvictionOrder::adapter_value(const Family& family) {
  const double cost = reload_cost_ ? reload_cost_(family.id) : 1.0;
  LK_CHECK(std::isfinite(cost) && cost > 0, "reloading adapter {} costs {}", family.id, cost);
  highest_cost_ = std::max(highest_cost_, cost);
  if (family.touched) return highest_cost_ * kMostUses;
  double uses = std::clamp(demand_now(family), 1.0, kMostUses);
  for (const Class of : {kFresh, kFound})
    if (family.num_pages[of] > 0) uses = std::max(uses, expected_uses(of));
  return cost * uses;
}

// --- Adapters

void EvictionOrder::unlist(Family& family) {
  if (family.listed) family.node = adapters_.extract(family.place);
  family.listed = false;
}

void EvictionOrder::update_adapter(int32_t place) {
  Family& family = at(place);
  if (!family.cached) return;
  const Entry entry{family.base + adapter_value(family), family.stamp, place};
  if (family.listed && family.place->priority == entry.priority && family.place->stamp == entry.stamp) return;
  unlist(family);
  if (family.node.empty()) {
    family.place = adapters_.insert(entry).first;
  } else {
    family.node.value() = entry;
    family.place = adapters_.insert(std::move(family.node)).position;
  }
  family.listed = true;
}

void EvictionOrder::cache_adapter(AdapterId adapter) {
  const int32_t place = family_of(adapter);
  Family& family = at(place);
  LK_CHECK(!family.cached, "adapter {} is cached twice", adapter);
  family.cached = true;
  family.touched = false;
  family.base = clock_;
  family.stamp = ++stamps_;
  update_adapter(place);
}

void EvictionOrder::uncache_adapter(AdapterId adapter) {
  Family& family = at(index_.at(adapter));
  LK_CHECK(family.cached, "adapter {} is not cached", adapter);
  family.cached = false;
  unlist(family);
}

void EvictionOrder::touch(AdapterId adapter) {
  const int32_t place = index_.at(adapter);
  Family& family = at(place);
  LK_CHECK(family.cached, "adapter {} is not cached", adapter);
  family.touched = true;
  family.base = clock_;
  family.stamp = ++stamps_;
  update_adapter(place);
}

// --- KV pages

void EvictionOrder::cache_page(PageId id, AdapterId adapter, bool found) {
  Page& page = pages_[static_cast<size_t>(id)];
  LK_CHECK(page.family < 0, "KV page {} is cached twice", id);
  const int32_t place = family_of(adapter);
  const Class in = found ? kFound : kFresh;
  PageClass& pages = classes_[in];
  page = {.family = place, .in = in, .older = pages.newest, .base = clock_, .stamp = ++stamps_};
  (pages.newest >= 0 ? pages_[static_cast<size_t>(pages.newest)].newer : pages.oldest) = id;
  pages.newest = id;
  ++pages.count;
  if (++at(place).num_pages[in] == 1) update_adapter(place);
}

void EvictionOrder::uncache_page(PageId id, bool hit) {
  Page& page = pages_[static_cast<size_t>(id)];
  LK_CHECK(page.family >= 0, "KV page {} is not cached", id);
  PageClass& pages = classes_[page.in];
  (page.older >= 0 ? pages_[static_cast<size_t>(page.older)].newer : pages.oldest) = page.newer;
  (page.newer >= 0 ? pages_[static_cast<size_t>(page.newer)].older : pages.newest) = page.older;
  --pages.count;
  if (hit) ++pages.hits;
  if (--at(page.family).num_pages[page.in] == 0) update_adapter(page.family);
  page = Page();
}

std::vector<PageId> EvictionOrder::pages_of(AdapterId adapter) const {
  std::vector<PageId> out;
  const auto it = index_.find(adapter);
  if (it == index_.end()) return out;
  for (const PageClass& pages : classes_)
    for (PageId id = pages.oldest; id >= 0; id = pages_[static_cast<size_t>(id)].newer)
      if (pages_[static_cast<size_t>(id)].family == it->second) out.push_back(id);
  return out;
}

// --- Who goes

std::optional<EvictionOrder::Victim> EvictionOrder::next_page() const {
  std::optional<Victim> victim;
  uint64_t stamp = 0;
  for (const Class in : {kFresh, kFound}) {
    if (classes_[in].oldest < 0) continue;
    const Page& page = pages_[static_cast<size_t>(classes_[in].oldest)];
    const double priority = page.base + kKvPageCost * expected_uses(in);
    if (victim && std::pair(victim->priority, stamp) < std::pair(priority, page.stamp)) continue;
    victim = Victim{
        .adapter = families_[static_cast<size_t>(page.family)].id, .page = classes_[in].oldest, .priority = priority};
    stamp = page.stamp;
  }
  return victim;
}

std::optional<EvictionOrder::Victim> EvictionOrder::next(const std::function<bool(AdapterId)>& kept) const {
  const std::optional<Victim> victim = next_page();
  for (const Entry& entry : adapters_) {
    if (victim && victim->priority <= entry.priority) break;
    const AdapterId adapter = families_[static_cast<size_t>(entry.family)].id;
    if (!kept || !kept(adapter)) return Victim{.adapter = adapter, .priority = entry.priority};
  }
  return victim;
}

void EvictionOrder::evicting(const Victim& victim) { clock_ = std::max(clock_, victim.priority); }

void EvictionOrder::check_integrity() const {
  std::vector<std::array<int64_t, kNumClasses>> in_family(families_.size());
  int64_t linked = 0;
  for (const Class in : {kFresh, kFound}) {
    int64_t count = 0;
    PageId older = -1;
    for (PageId id = classes_[in].oldest; id >= 0; older = id, id = pages_[static_cast<size_t>(id)].newer, ++count) {
      const Page& page = pages_[static_cast<size_t>(id)];
      LK_CHECK(page.family >= 0 && page.in == in && page.older == older, "cached KV page {} is linked wrongly", id);
      LK_CHECK(older < 0 || (pages_[static_cast<size_t>(older)].stamp < page.stamp &&
                             pages_[static_cast<size_t>(older)].base <= page.base),
               "KV pages {} and {} are out of order", older, id);
      ++in_family[static_cast<size_t>(page.family)][in];
    }
    LK_CHECK(classes_[in].newest == older && classes_[in].count == count);
    linked += count;
  }
  LK_CHECK(linked == std::count_if(pages_.begin(), pages_.end(), [](const Page& page) { return page.family >= 0; }),
           "a cached KV page is in no list");
  size_t listed = 0, known = 0;
  for (size_t place = 0; place < families_.size(); ++place) {
    const Family& family = families_[place];
    LK_CHECK(family.num_pages == in_family[place], "family {} miscounts its KV pages", family.id);
    if (!family.known) continue;
    ++known;
    LK_CHECK(index_.at(family.id) == static_cast<int32_t>(place), "family {} is not where its index says", family.id);
    LK_CHECK(family.cached == family.listed, "adapter {} is missing from the order, or left over", family.id);
    if (!family.cached) continue;
    ++listed;
    LK_CHECK(family.place->family == static_cast<int32_t>(place) && family.place->stamp == family.stamp &&
                 family.place->priority > family.base &&
                 family.place->priority <= family.base + highest_cost_ * kMostUses,
             "adapter {} has a wrong place in the order", family.id);
  }
  LK_CHECK(listed == adapters_.size() && known == index_.size() && known + unused_.size() == families_.size());
}

}  // namespace lk
