// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/unified_pool.h"

#include <algorithm>
#include <cstring>

#include "lk/base/check.h"
#include "lk/base/sha256.h"

namespace lk {

BlockKey root_block_key(AdapterId adapter, uint64_t salt) {
  Sha256 sha;
  sha.update(&adapter, sizeof adapter);
  sha.update(&salt, sizeof salt);
  return sha.finish();
}

BlockKey child_block_key(const BlockKey& parent, std::span<const int32_t> tokens) {
  Sha256 sha;
  sha.update(parent.data(), parent.size());
  sha.update(tokens.data(), tokens.size_bytes());
  return sha.finish();
}

size_t UnifiedPool::KeyHash::operator()(const BlockKey& key) const {
  size_t hash;
  std::memcpy(&hash, key.data(), sizeof hash);
  return hash;
}

UnifiedPool::UnifiedPool(int64_t num_pages, EvictionCosts costs)
    : pool_(num_pages), order_(num_pages, costs), kv_(static_cast<size_t>(num_pages)) {}

// --- Eviction

bool UnifiedPool::evict_one(const std::function<bool(AdapterId)>& kept) {
  const std::optional<EvictionOrder::Victim> victim = order_.next(kept);
  if (!victim) return false;
  order_.evicting(*victim);
  if (victim->page >= 0) {
    evict_kv(victim->page);
  } else {
    Resident& resident = adapters_.at(victim->adapter);
    uncache_adapter(victim->adapter, resident);
    free_adapter_pages(resident);
    adapters_.erase(victim->adapter);
    ++evicted_adapters_;
  }
  return true;
}

void UnifiedPool::evict_kv(PageId page) {
  order_.uncache_page(page, false);
  KvPage& info = kv_[static_cast<size_t>(page)];
  published_.erase(info.key);
  info.published = false;
  pool_.free(page);
}

bool UnifiedPool::make_room(int64_t num_pages) {
  if (num_available() < num_pages) return false;
  while (num_free() < num_pages)
    if (!evict_one()) return false;
  return true;
}

void UnifiedPool::evict_all() {
  while (evict_one()) {
  }
}

// --- KV pages

std::optional<PageId> UnifiedPool::alloc_kv() {
  if (!make_room(1)) return std::nullopt;
  const PageId page = *pool_.try_alloc(PageUse::kKv);
  kv_[static_cast<size_t>(page)] = KvPage{.references = 1};
  return page;
}

void UnifiedPool::retain_kv(PageId page) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  if (info.references++ == 0) order_.uncache_page(page, true);
}

void UnifiedPool::release_kv(PageId page) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.references > 0, "KV page {} released more often than retained", page);
  if (--info.references > 0) return;
  if (!info.published) return pool_.free(page);
  order_.cache_page(page, info.adapter, info.found);
}

std::optional<PageId> UnifiedPool::find_kv(const BlockKey& key) {
  const auto it = published_.find(key);
  if (it == published_.end()) return std::nullopt;
  retain_kv(it->second);
  kv_[static_cast<size_t>(it->second)].found = true;
  return it->second;
}

void UnifiedPool::publish_kv(PageId page, const BlockKey& key, AdapterId adapter) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.references > 0);
  if (info.published || !published_.emplace(key, page).second) return;
  info.published = true;
  info.key = key;
  info.adapter = adapter;
}

// --- Adapters

void UnifiedPool::free_adapter_pages(Resident& resident) {
  pool_.free(resident.pages.pages);
  for (int64_t i = 0; i < resident.pages.run_length; ++i) pool_.free(static_cast<PageId>(resident.pages.run_begin + i));
}

void UnifiedPool::cache_adapter(AdapterId adapter, Resident& resident) {
  order_.cache_adapter(adapter);
  cached_adapter_pages_ += resident.total();
}

void UnifiedPool::uncache_adapter(AdapterId adapter, Resident& resident) {
  order_.uncache_adapter(adapter);
  cached_adapter_pages_ -= resident.total();
}

AdapterState UnifiedPool::adapter_state(AdapterId adapter) const {
  const auto it = adapters_.find(adapter);
  return it == adapters_.end() ? AdapterState::kAbsent : it->second.state;
}

bool UnifiedPool::begin_load(AdapterId adapter, const AdapterFootprint& footprint) {
  LK_CHECK(adapter_state(adapter) == AdapterState::kAbsent);
  if (!make_room(footprint.total())) return false;
  std::optional<PageId> run;
  // Enough pages may be free but scattered; evicting more may join them.
  while (footprint.run_length > 0 && !(run = pool_.try_alloc_run(PageUse::kAdapter, footprint.run_length)))
    if (!evict_one()) return false;
  take_adapter_pages(adapter, footprint, run);
  return true;
}

bool UnifiedPool::begin_load_gently(AdapterId adapter, const AdapterFootprint& footprint,
                                    const std::function<bool(AdapterId)>& kept, int64_t spare) {
  LK_CHECK(adapter_state(adapter) == AdapterState::kAbsent);
  int64_t room = num_free() + num_cached_kv();
  order_.for_each_adapter([&](AdapterId other) {
    if (room < footprint.total() + spare && !kept(other)) room += adapters_.at(other).total();
    return room < footprint.total() + spare;
  });
  if (room < footprint.total() + spare) return false;
  while (num_free() < footprint.total()) LK_CHECK(evict_one(kept));
  std::optional<PageId> run;
  if (footprint.run_length > 0 && !(run = pool_.try_alloc_run(PageUse::kAdapter, footprint.run_length))) return false;
  take_adapter_pages(adapter, footprint, run);
  return true;
}

void UnifiedPool::take_adapter_pages(AdapterId adapter, const AdapterFootprint& footprint, std::optional<PageId> run) {
  Resident resident;
  if (run) {
    resident.pages.run_begin = *run;
    resident.pages.run_length = footprint.run_length;
  }
  resident.pages.pages.resize(static_cast<size_t>(footprint.num_pages));
  LK_CHECK(pool_.try_alloc(PageUse::kAdapter, resident.pages.pages));
  adapters_.emplace(adapter, std::move(resident));
}

void UnifiedPool::touch(AdapterId adapter) {
  const auto it = adapters_.find(adapter);
  if (it == adapters_.end() || it->second.state != AdapterState::kResident || it->second.pins > 0) return;
  order_.touch(adapter);
}

const AdapterPages& UnifiedPool::adapter_pages(AdapterId adapter) const { return adapters_.at(adapter).pages; }

void UnifiedPool::finish_load(AdapterId adapter, bool success) {
  Resident& resident = adapters_.at(adapter);
  LK_CHECK(resident.state == AdapterState::kLoading);
  if (success) {
    resident.state = AdapterState::kResident;
    cache_adapter(adapter, resident);
  } else {
    free_adapter_pages(resident);
    adapters_.erase(adapter);
  }
}

void UnifiedPool::pin(AdapterId adapter) {
  Resident& resident = adapters_.at(adapter);
  LK_CHECK(resident.state == AdapterState::kResident);
  if (resident.pins++ == 0) uncache_adapter(adapter, resident);
}

void UnifiedPool::unpin(AdapterId adapter) {
  Resident& resident = adapters_.at(adapter);
  LK_CHECK(resident.pins > 0);
  if (--resident.pins == 0) cache_adapter(adapter, resident);
}

int64_t UnifiedPool::num_pins(AdapterId adapter) const {
  const auto it = adapters_.find(adapter);
  return it == adapters_.end() ? 0 : it->second.pins;
}

std::vector<std::pair<AdapterId, UnifiedPool::AdapterInfo>> UnifiedPool::resident_adapters() const {
  std::vector<std::pair<AdapterId, AdapterInfo>> infos;
  for (const auto& [id, resident] : adapters_)
    infos.emplace_back(id, AdapterInfo{.state = resident.state, .pages = resident.total(), .pins = resident.pins});
  return infos;
}

int64_t UnifiedPool::forget(AdapterId adapter) {
  LK_CHECK(!has_merge(adapter), "adapter {} is forgotten while merged", adapter);
  const int64_t free_before = num_free();
  if (const auto it = adapters_.find(adapter); it != adapters_.end()) {
    LK_CHECK(it->second.state == AdapterState::kResident && it->second.pins == 0, "adapter {} is in use", adapter);
    uncache_adapter(adapter, it->second);
    free_adapter_pages(it->second);
    adapters_.erase(it);
  }
  for (const PageId page : order_.pages_of(adapter)) evict_kv(page);
  order_.forget(adapter);
  return num_free() - free_before;
}

// --- Merged layers

std::optional<PageId> UnifiedPool::take_merge_run(int64_t length) {
  // From the high end, where single pages come last, and through cached KV pages: waiting for the eviction order to
  // join as many free pages would empty the whole cache first.
  int64_t found = 0;
  for (int64_t at = num_pages() - 1; at >= 0; --at) {
    const auto page = static_cast<PageId>(at);
    const PageUse use = pool_.use(page);
    const bool takeable =
        use == PageUse::kFree || (use == PageUse::kKv && kv_[static_cast<size_t>(at)].references == 0);
    found = takeable ? found + 1 : 0;
    if (found < length) continue;
    for (int64_t i = 0; i < length; ++i)
      if (pool_.use(static_cast<PageId>(at + i)) == PageUse::kKv) evict_kv(static_cast<PageId>(at + i));
    pool_.alloc_run_at(PageUse::kMerged, page, length);
    return page;
  }
  return std::nullopt;
}

bool UnifiedPool::begin_merge(AdapterId adapter, std::span<const int64_t> run_lengths, int64_t keep_available) {
  LK_CHECK(!has_merge(adapter), "adapter {} has merged layers already", adapter);
  int64_t total = 0;
  for (int64_t length : run_lengths) total += length;
  if (total + keep_available > num_available()) return false;
  MergePages& merge = merges_[adapter];
  for (int64_t length : run_lengths) {
    const std::optional<PageId> run = length > 0 ? take_merge_run(length) : std::optional<PageId>(-1);
    if (!run) {
      release_merge(adapter);
      return false;
    }
    merge.run_begin.push_back(*run);
    merge.run_length.push_back(length);
  }
  return true;
}

int64_t UnifiedPool::release_merge(AdapterId adapter) {
  const auto it = merges_.find(adapter);
  LK_CHECK(it != merges_.end(), "adapter {} has no merged layers", adapter);
  int64_t freed = 0;
  for (size_t run = 0; run < it->second.run_begin.size(); ++run)
    for (int64_t i = 0; i < it->second.run_length[run]; ++i, ++freed)
      pool_.free(static_cast<PageId>(it->second.run_begin[run] + i));
  merges_.erase(it);
  return freed;
}

void UnifiedPool::check_integrity() const {
  pool_.check_integrity();
  order_.check_integrity();
  int64_t kv_pages = 0, cached = 0;
  for (size_t page = 0; page < kv_.size(); ++page) {
    if (pool_.use(static_cast<PageId>(page)) != PageUse::kKv) continue;
    ++kv_pages;
    const KvPage& info = kv_[page];
    if (info.references == 0) ++cached;
    LK_CHECK(info.references > 0 || info.published, "KV page {} is unreferenced, unpublished and not free", page);
    if (info.published) LK_CHECK(published_.at(info.key) == static_cast<PageId>(page));
  }
  LK_CHECK(kv_pages == pool_.num_used(PageUse::kKv) && cached == num_cached_kv());
  int64_t adapter_pages = 0, cached_adapters = 0;
  for (const auto& [id, resident] : adapters_) {
    adapter_pages += resident.total();
    if (resident.state == AdapterState::kResident && resident.pins == 0) cached_adapters += resident.total();
    for (PageId page : resident.pages.pages) LK_CHECK(pool_.use(page) == PageUse::kAdapter);
  }
  LK_CHECK(adapter_pages == pool_.num_used(PageUse::kAdapter), "adapter pages leaked");
  LK_CHECK(cached_adapters == cached_adapter_pages_);
  int64_t merged_pages = 0;
  for (const auto& [id, merge] : merges_) {
    LK_CHECK(merge.run_begin.size() == merge.run_length.size());
    for (size_t run = 0; run < merge.run_begin.size(); ++run)
      for (int64_t i = 0; i < merge.run_length[run]; ++i, ++merged_pages)
        LK_CHECK(pool_.use(static_cast<PageId>(merge.run_begin[run] + i)) == PageUse::kMerged);
  }
  LK_CHECK(merged_pages == pool_.num_used(PageUse::kMerged), "merged pages leaked");
}

}  // namespace lk
