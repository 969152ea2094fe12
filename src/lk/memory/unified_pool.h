// SPDX-License-Identifier: Apache-2.0
// UnifiedPool: one page budget for KV blocks, resident adapters and merged layers (S-LoRA's unified paging, arXiv:2311.03285 §5.1).
//
// A KV page is referenced by the sequences that read it. A full page may be published under a key, the hash chain of
// (salt, adapter version, tokens so far); when its last reader leaves it stays, cached, until room is needed.
// An adapter is absent, loading (its pages are taken, a loader fills them) or resident; running requests pin it; an
// unpinned resident adapter is cached until room is needed.
// Eviction picks between the oldest cached KV page and the oldest cached adapter by Greedy-Dual priority
// (Young 1994): priority = clock + cost to bring one page back; the clock rises to each victim's priority.
// Merged layers take contiguous runs, one per layer. They are never evicted here: who holds them gives them back
// (release_merge), because somebody may be writing or reading them.
//
// Thread safety: none; owned by the scheduler on the engine thread. Pure accounting.
#pragma once

#include <array>
#include <functional>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "lk/memory/page_pool.h"

namespace lk {

using AdapterId = int32_t;  // a loaded adapter version; never reused
inline constexpr AdapterId kBaseModel = -1;

// SHA-256 of (parent key, adapter id, salt, 16 token ids): a collision would serve one prompt's cache to another.
using BlockKey = std::array<uint8_t, 32>;
BlockKey root_block_key(AdapterId adapter, uint64_t salt);
BlockKey child_block_key(const BlockKey& parent, std::span<const int32_t> tokens);

// Pages an adapter takes: `num_pages` single ones for its layer slices and a contiguous run for whole matrices.
struct AdapterPages {
  std::vector<PageId> pages;
  PageId run_begin = -1;
  int64_t run_length = 0;
};
struct AdapterFootprint {
  int64_t num_pages = 0;
  int64_t run_length = 0;
  int64_t total() const { return num_pages + run_length; }
};

// The runs of pages that a merged copy of the base takes, one per layer; length 0 where nothing of the layer is merged.
struct MergePages {
  std::vector<PageId> run_begin;
  std::vector<int64_t> run_length;
};

enum class AdapterState : uint8_t { kAbsent, kLoading, kResident };

struct EvictionCosts {
  double kv_page = 4.0;       // recomputing 16 tokens
  double adapter_page = 1.0;  // copying one page from the host tier
};

class UnifiedPool {
 public:
  explicit UnifiedPool(int64_t num_pages, EvictionCosts costs = {});

  int64_t num_pages() const { return pool_.num_pages(); }
  int64_t num_free() const { return pool_.num_free(); }
  int64_t num_evictable() const { return cached_kv_pages_ + cached_adapter_pages_; }
  int64_t num_available() const { return num_free() + num_evictable(); }
  int64_t num_kv() const { return pool_.num_used(PageUse::kKv); }
  int64_t num_adapter() const { return pool_.num_used(PageUse::kAdapter); }
  int64_t num_merged() const { return pool_.num_used(PageUse::kMerged); }
  int64_t num_cached_kv() const { return cached_kv_pages_; }
  int64_t num_evicted_adapters() const { return evicted_adapters_; }

  // --- KV pages
  std::optional<PageId> alloc_kv();  // one reference; evicts cached pages or adapters when needed
  void retain_kv(PageId page);
  void release_kv(PageId page);
  // The page published under `key`, with one more reference.
  std::optional<PageId> find_kv(const BlockKey& key);
  bool has_kv(const BlockKey& key) const { return published_.contains(key); }
  // Makes a full page findable; `adapter` is the one it was computed with. Keeps the first page when the key exists already.
  void publish_kv(PageId page, const BlockKey& key, AdapterId adapter);

  // --- Adapters
  AdapterState adapter_state(AdapterId adapter) const;
  // Takes the pages of an absent adapter, evicting as needed: absent -> loading. False when there is no room now.
  // The caller's pin count starts at 0; a loading adapter is not evicted.
  bool begin_load(AdapterId adapter, const AdapterFootprint& footprint);
  // The same for a load that nobody waits for yet: evicts no adapter that `kept` names, no more than the footprint (so it may fail for
  // want of contiguous pages), and nothing at all unless `spare` pages besides stay free or evictable.
  bool begin_load_gently(AdapterId adapter, const AdapterFootprint& footprint, const std::function<bool(AdapterId)>& kept, int64_t spare);
  void touch(AdapterId adapter);  // a cached adapter becomes the last to be evicted; nothing for others
  const AdapterPages& adapter_pages(AdapterId adapter) const;
  void finish_load(AdapterId adapter, bool success);  // loading -> resident, or absent and its pages free
  void pin(AdapterId adapter);                         // Requires: resident
  void unpin(AdapterId adapter);
  int64_t num_pins(AdapterId adapter) const;
  struct AdapterInfo {
    AdapterState state = AdapterState::kAbsent;
    int64_t pages = 0, pins = 0;
  };
  std::vector<std::pair<AdapterId, AdapterInfo>> resident_adapters() const;  // and loading ones
  // Frees everything an unregistered adapter holds, its pages and those cached for its prompts (its id is never used again), and
  // returns how many pages that were. Requires: not loading, not merged, no pins, no sequence of it.
  int64_t forget(AdapterId adapter);

  // --- Merged layers
  // Takes one run per entry of `run_lengths` for a merged copy of `adapter`, evicting cached KV pages that are in the way but no adapter.
  // False, and nothing taken, when there is no room or fewer than `keep_available` pages would stay available.
  // Requires: the adapter has none.
  bool begin_merge(AdapterId adapter, std::span<const int64_t> run_lengths, int64_t keep_available);
  bool has_merge(AdapterId adapter) const { return merges_.contains(adapter); }
  const MergePages& merge_pages(AdapterId adapter) const { return merges_.at(adapter); }
  // Frees the runs and returns how many pages that were. Requires: nobody writes or reads them any more.
  int64_t release_merge(AdapterId adapter);

  // Frees everything that is only cached. For tests and for giving memory back.
  void evict_all();
  void check_integrity() const;

 private:
  struct KvPage {
    int32_t references = 0;
    bool published = false;
    BlockKey key{};
    AdapterId adapter = kBaseModel;  // while published
    double priority = 0;
    PageId newer = -1, older = -1;  // LRU links while cached
  };
  struct Resident {
    AdapterState state = AdapterState::kLoading;
    AdapterPages pages;
    int64_t pins = 0;
    double priority = 0;
    std::list<AdapterId>::iterator lru;  // valid while cached (resident, no pins)
    int64_t total() const { return static_cast<int64_t>(pages.pages.size()) + pages.run_length; }
  };
  struct KeyHash {
    size_t operator()(const BlockKey& key) const;
  };

  bool evict_one(const std::function<bool(AdapterId)>& kept = {});  // one cached KV page or one cached adapter that is not kept
  void evict_kv(PageId page);
  bool make_room(int64_t num_pages);
  void lru_append(PageId page);
  void lru_remove(PageId page);
  void take_adapter_pages(AdapterId adapter, const AdapterFootprint& footprint, std::optional<PageId> run);
  void free_adapter_pages(Resident& resident);
  void cache_adapter(AdapterId adapter, Resident& resident);
  void uncache_adapter(Resident& resident);
  std::optional<PageId> take_merge_run(int64_t length);

  PagePool pool_;
  EvictionCosts costs_;
  double clock_ = 0;

  std::vector<KvPage> kv_;                                      // by page
  std::unordered_map<BlockKey, PageId, KeyHash> published_;
  PageId oldest_ = -1, newest_ = -1;
  int64_t cached_kv_pages_ = 0;

  std::unordered_map<AdapterId, Resident> adapters_;
  std::list<AdapterId> adapter_lru_;  // oldest first
  int64_t cached_adapter_pages_ = 0;
  int64_t evicted_adapters_ = 0;
  std::unordered_map<AdapterId, MergePages> merges_;
};

}  // namespace lk
