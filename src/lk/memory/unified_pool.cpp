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

BlockKey activated_block_key(const BlockKey& parent, AdapterId adapter, int64_t from) {
  Sha256 sha;
  sha.update(parent.data(), parent.size());
  sha.update(&adapter, sizeof adapter);
  sha.update(&from, sizeof from);
  return sha.finish();
}

size_t UnifiedPool::KeyHash::operator()(const BlockKey& key) const {
  size_t hash;
  std::memcpy(&hash, key.data(), sizeof hash);
  return hash;
}

UnifiedPool::UnifiedPool(int64_t num_pages) : pool_(num_pages), order_(num_pages), kv_(static_cast<size_t>(num_pages)) {
  published_.reserve(kv_.size());
}

// --- Eviction

void UnifiedPool::evict(const std::optional<EvictionOrder::Victim>& victim) {
  LK_CHECK(victim, "pages were promised that nobody can be made to give");
  order_.evicting(*victim);
  if (victim->page >= 0) {
    evict_kv(victim->page);
  } else {
    evict_adapter(victim->adapter);
    ++evicted_adapters_;
  }
}

void UnifiedPool::evict_kv(PageId page) {
  order_.uncache_page(page, false);
  KvPage& info = kv_[static_cast<size_t>(page)];
  unused_nodes_.push_back(published_.extract(info.key));
  info.published = false;
  pool_.free(page);
}

void UnifiedPool::evict_adapter(AdapterId adapter) {
  Resident& resident = adapters_.at(adapter);
  uncache_adapter(adapter, resident);
  if (evicted_) evicted_(adapter);
  pool_.free(resident.pages);
  adapters_.erase(adapter);
}

void UnifiedPool::make_room(int64_t num_pages) {
  while (num_free() < num_pages) evict(order_.next());
}

void UnifiedPool::evict_all() {
  while (const auto victim = order_.next()) evict(victim);
}

std::vector<PageId> UnifiedPool::take(PageUse use, int64_t num_pages) {
  std::vector<PageId> pages(static_cast<size_t>(num_pages));
  LK_CHECK(pool_.try_alloc(use, pages));
  std::ranges::sort(pages);  // neighbours in memory, where there are any, are read faster in their order
  return pages;
}

// --- KV pages

std::optional<PageId> UnifiedPool::alloc_kv() {
  if (num_available() < 1) return std::nullopt;
  make_room(1);
  const PageId page = *pool_.try_alloc(PageUse::kKv);
  kv_[static_cast<size_t>(page)] = KvPage{.references = 1};
  return page;
}

void UnifiedPool::release_kv(PageId page) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.references > 0, "KV page {} released more often than retained", page);
  if (--info.references > 0) return;
  if (!info.published) return pool_.free(page);
  order_.cache_page(page, info.adapter, info.found);
}

std::optional<PageId> UnifiedPool::find_kv(const BlockKey& key) const {
  const auto it = published_.find(key);
  return it == published_.end() ? std::nullopt : std::optional(it->second);
}

void UnifiedPool::reuse_kv(PageId page) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.published, "KV page {} was not found by its key", page);
  if (info.references++ == 0) order_.uncache_page(page, true);
  info.found = true;
}

void UnifiedPool::publish_kv(PageId page, const BlockKey& key, AdapterId adapter) {
  KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.references > 0);
  if (info.published || published_.contains(key)) return;
  if (unused_nodes_.empty()) {
    published_.emplace(key, page);
  } else {
    Published::node_type node = std::move(unused_nodes_.back());
    unused_nodes_.pop_back();
    node.key() = key;
    node.mapped() = page;
    published_.insert(std::move(node));
  }
  info.published = true;
  info.key = key;
  info.adapter = adapter;
}

// --- Adapters

void UnifiedPool::cache_adapter(AdapterId adapter, Resident& resident) {
  order_.cache_adapter(adapter);
  cached_adapter_pages_ += resident.num_pages();
}

void UnifiedPool::uncache_adapter(AdapterId adapter, Resident& resident) {
  order_.uncache_adapter(adapter);
  cached_adapter_pages_ -= resident.num_pages();
}

AdapterState UnifiedPool::adapter_state(AdapterId adapter) const {
  const auto it = adapters_.find(adapter);
  return it == adapters_.end() ? AdapterState::kAbsent : it->second.state;
}

int64_t UnifiedPool::num_cached_pages(AdapterId adapter) const {
  const auto it = adapters_.find(adapter);
  return it != adapters_.end() && it->second.cached() ? it->second.num_pages() : 0;
}

bool UnifiedPool::begin_load(AdapterId adapter, int64_t num_pages) {
  LK_CHECK(adapter_state(adapter) == AdapterState::kAbsent);
  if (num_available() < num_pages) return false;
  make_room(num_pages);
  adapters_.emplace(adapter, Resident{.pages = take(PageUse::kAdapter, num_pages)});
  return true;
}

bool UnifiedPool::begin_load_gently(AdapterId adapter, int64_t num_pages, const std::function<bool(AdapterId)>& kept,
                                    int64_t spare) {
  LK_CHECK(adapter_state(adapter) == AdapterState::kAbsent);
  int64_t room = num_free() + num_cached_kv();
  order_.for_each_adapter([&](AdapterId other) {
    if (room < num_pages + spare && !kept(other)) room += adapters_.at(other).num_pages();
    return room < num_pages + spare;
  });
  if (room < num_pages + spare) return false;
  while (num_free() < num_pages) evict(order_.next(kept));
  adapters_.emplace(adapter, Resident{.pages = take(PageUse::kAdapter, num_pages)});
  return true;
}

void UnifiedPool::touch(AdapterId adapter) {
  const auto it = adapters_.find(adapter);
  if (it != adapters_.end() && it->second.cached()) order_.touch(adapter);
}

void UnifiedPool::finish_load(AdapterId adapter, bool success) {
  Resident& resident = adapters_.at(adapter);
  LK_CHECK(resident.state == AdapterState::kLoading);
  if (success) {
    resident.state = AdapterState::kResident;
    cache_adapter(adapter, resident);
  } else {
    pool_.free(resident.pages);
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
    infos.emplace_back(id, AdapterInfo{.state = resident.state, .pages = resident.num_pages(), .pins = resident.pins});
  return infos;
}

int64_t UnifiedPool::forget(AdapterId adapter) {
  LK_CHECK(!has_merge(adapter), "adapter {} is forgotten while merged", adapter);
  const int64_t free_before = num_free();
  if (const auto it = adapters_.find(adapter); it != adapters_.end()) {
    LK_CHECK(it->second.cached(), "adapter {} is in use", adapter);
    evict_adapter(adapter);
  }
  for (const PageId page : order_.pages_of(adapter)) evict_kv(page);
  order_.forget(adapter);
  return num_free() - free_before;
}

// --- Merged layers

bool UnifiedPool::can_merge(int64_t num_pages, int64_t keep_available, int64_t given_back) const {
  return num_free() + num_cached_kv() + given_back >= num_pages &&
         num_available() + given_back - num_pages >= keep_available;
}

bool UnifiedPool::begin_merge(AdapterId adapter, int64_t num_pages, int64_t keep_available) {
  LK_CHECK(!has_merge(adapter), "adapter {} has merged layers already", adapter);
  if (!can_merge(num_pages, keep_available)) return false;
  while (num_free() < num_pages) evict(order_.next_page());
  merges_.emplace(adapter, take(PageUse::kMerged, num_pages));
  return true;
}

int64_t UnifiedPool::release_merge(AdapterId adapter) {
  const auto it = merges_.find(adapter);
  LK_CHECK(it != merges_.end(), "adapter {} has no merged layers", adapter);
  const auto freed = static_cast<int64_t>(it->second.size());
  pool_.free(it->second);
  merges_.erase(it);
  return freed;
}

void UnifiedPool::check_kv(PageId page) const {
  const KvPage& info = kv_[static_cast<size_t>(page)];
  LK_CHECK(info.references > 0 || info.published, "KV page {} is unreferenced, unpublished and not free", page);
  if (!info.published) return;
  const auto it = published_.find(info.key);
  LK_CHECK(it != published_.end() && it->second == page, "KV page {} is not found under its key", page);
}

void UnifiedPool::check_slice(int64_t begin, int64_t count) const {
  LK_CHECK(begin >= 0 && count >= 0 && begin + count <= num_pages());
  std::vector<int8_t> owners(static_cast<size_t>(count));  // adapters and merged layers that list the page
  const auto count_owner = [&](PageId page, PageUse use) {
    if (page < begin || page >= begin + count) return;
    LK_CHECK(pool_.use(page) == use, "page {} belongs to an adapter and is used for something else", page);
    ++owners[static_cast<size_t>(page - begin)];
  };
  for (const auto& [id, resident] : adapters_)
    for (PageId page : resident.pages) count_owner(page, PageUse::kAdapter);
  for (const auto& [id, pages] : merges_)
    for (PageId page : pages) count_owner(page, PageUse::kMerged);
  for (int64_t i = 0; i < count; ++i) {
    const auto page = static_cast<PageId>(begin + i);
    const PageUse use = pool_.use(page);
    if (use == PageUse::kKv) check_kv(page);
    const int expected = use == PageUse::kAdapter || use == PageUse::kMerged ? 1 : 0;
    LK_CHECK(owners[static_cast<size_t>(i)] == expected, "page {} has {} owners instead of {}", page,
             owners[static_cast<size_t>(i)], expected);
  }
}

void UnifiedPool::check_integrity() const {
  pool_.check_integrity();
  order_.check_integrity();
  int64_t kv_pages = 0, cached = 0;
  for (size_t page = 0; page < kv_.size(); ++page) {
    if (pool_.use(static_cast<PageId>(page)) != PageUse::kKv) continue;
    ++kv_pages;
    if (kv_[page].references == 0) ++cached;
    check_kv(static_cast<PageId>(page));
  }
  LK_CHECK(kv_pages == pool_.num_used(PageUse::kKv) && cached == num_cached_kv());
  int64_t adapter_pages = 0, cached_adapters = 0;
  for (const auto& [id, resident] : adapters_) {
    adapter_pages += resident.num_pages();
    if (resident.cached()) cached_adapters += resident.num_pages();
    for (PageId page : resident.pages) LK_CHECK(pool_.use(page) == PageUse::kAdapter);
  }
  LK_CHECK(adapter_pages == pool_.num_used(PageUse::kAdapter), "adapter pages leaked");
  LK_CHECK(cached_adapters == cached_adapter_pages_);
  int64_t merged_pages = 0;
  for (const auto& [id, pages] : merges_) {
    merged_pages += static_cast<int64_t>(pages.size());
    for (PageId page : pages) LK_CHECK(pool_.use(page) == PageUse::kMerged);
  }
  LK_CHECK(merged_pages == pool_.num_used(PageUse::kMerged), "merged pages leaked");
}

}  // namespace lk
