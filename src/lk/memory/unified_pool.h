// SPDX-License-Identifier: Apache-2.0
// UnifiedPool: one page budget for KV blocks, resident adapters and merged layers (S-LoRA's unified paging,
// arXiv:2311.03285 §5.1).
//
// A KV page is referenced by the sequences that read it. A full page may be published under a key, the hash chain of
// (salt, adapter version, tokens so far); when its last reader leaves it stays, cached, until room is needed.
// An adapter is absent, loading (its pages are taken, a loader fills them) or resident; running requests pin it; an
// unpinned resident adapter is cached until room is needed.
// When room is needed, what goes is the EvictionOrder's choice: cost to bring back x recency x predicted demand.
// Merged layers are never evicted here: who holds them gives them back (release_merge), because somebody may be writing
// or reading them.
//
// Whether something can be had is known from the counts before anything is evicted for it. What is refused leaves the
// pool as it was: no page moved, nothing counted, no change of who goes next.
//
// Thread safety: none; owned by the scheduler on the engine thread. Pure accounting.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "lk/memory/eviction_order.h"
#include "lk/memory/page_pool.h"

namespace lk {

// SHA-256 of (parent key, adapter id, salt, 16 token ids): a collision would serve one prompt's cache to another.
using BlockKey = std::array<uint8_t, 32>;
BlockKey root_block_key(AdapterId adapter, uint64_t salt);
BlockKey child_block_key(const BlockKey& parent, std::span<const int32_t> tokens);
// What stands for the parent of the first page in which an activated adapter acts: from position `from` on.
BlockKey activated_block_key(const BlockKey& parent, AdapterId adapter, int64_t from);

enum class AdapterState : uint8_t { kAbsent, kLoading, kResident };

class UnifiedPool {
 public:
  explicit UnifiedPool(int64_t num_pages);

  int64_t num_pages() const { return pool_.num_pages(); }
  int64_t num_free() const { return pool_.num_free(); }
  int64_t num_evictable() const { return order_.num_cached_pages() + cached_adapter_pages_; }
  int64_t num_available() const { return num_free() + num_evictable(); }
  int64_t num_kv() const { return pool_.num_used(PageUse::kKv); }
  int64_t num_adapter() const { return pool_.num_used(PageUse::kAdapter); }
  int64_t num_merged() const { return pool_.num_used(PageUse::kMerged); }
  int64_t num_cached_kv() const { return order_.num_cached_pages(); }
  int64_t num_evicted_adapters() const { return evicted_adapters_; }

  // --- KV pages
  std::optional<PageId> alloc_kv();  // one reference; evicts cached pages or adapters when needed
  void release_kv(PageId page);
  // The page published under `key`, if any. To look is not to use: nothing is counted, and nobody's turn to go changes.
  std::optional<PageId> find_kv(const BlockKey& key) const;
  // Takes one more reference to a page that find_kv() named: a hit.
  void reuse_kv(PageId page);
  bool is_cached_kv(PageId page) const { return kv_[static_cast<size_t>(page)].references == 0; }  // of KV pages
  // Makes a full page findable; `adapter` is the one it was computed with. Keeps the first page when the key exists
  // already.
  void publish_kv(PageId page, const BlockKey& key, AdapterId adapter);

  // --- Demand (memory/eviction_order.h)
  // A request for the adapter, or the base model, arrived.
  void note_demand(AdapterId adapter) { order_.note_demand(adapter); }
  double demand(AdapterId adapter) const { return order_.demand(adapter); }
  void set_reload_cost(std::function<double(AdapterId)> per_page) { order_.set_reload_cost(std::move(per_page)); }

  // --- Adapters
  AdapterState adapter_state(AdapterId adapter) const;
  // Called for each adapter that was resident and lost its pages, evicted or forgotten, before they are anybody else's.
  void set_evicted(std::function<void(AdapterId)> evicted) { evicted_ = std::move(evicted); }
  // Takes the pages of an absent adapter, evicting as needed: absent -> loading. False when there is no room now.
  // The caller's pin count starts at 0; a loading adapter is not evicted. O(num_pages).
  bool begin_load(AdapterId adapter, int64_t num_pages);
  // The same for a load that nobody waits for yet: evicts no adapter that `kept` names, and is refused unless `spare`
  // pages besides stay free or evictable. O(num_pages + spare + adapters kept).
  bool begin_load_gently(AdapterId adapter, int64_t num_pages, const std::function<bool(AdapterId)>& kept,
                         int64_t spare);
  void touch(AdapterId adapter);  // a cached adapter becomes the last one to be evicted; nothing for others
  // In the order in which it was given them: the adapter's bytes are laid out by it.
  const std::vector<PageId>& adapter_pages(AdapterId adapter) const { return adapters_.at(adapter).pages; }
  // Pages that pinning it takes away from num_evictable().
  int64_t num_cached_pages(AdapterId adapter) const;
  void finish_load(AdapterId adapter, bool success);  // loading -> resident, or absent and its pages free
  void pin(AdapterId adapter);                        // Requires: resident
  void unpin(AdapterId adapter);
  int64_t num_pins(AdapterId adapter) const;
  struct AdapterInfo {
    AdapterState state = AdapterState::kAbsent;
    int64_t pages = 0, pins = 0;
  };
  std::vector<std::pair<AdapterId, AdapterInfo>> resident_adapters() const;  // and loading ones
  // Frees everything an unregistered adapter holds, its pages and those cached for its prompts (its id is never used
  // again), and returns how many pages that were. Requires: not loading, not merged, no pins, no sequence of it.
  int64_t forget(AdapterId adapter);

  // --- Merged layers
  // Takes pages for a merged copy of `adapter`, evicting cached KV pages but no adapter. False, and nothing taken or
  // evicted, when these are too few or fewer than `keep_available` pages would stay available. Requires: the adapter
  // has none. O(num_pages).
  bool begin_merge(AdapterId adapter, int64_t num_pages, int64_t keep_available);
  // Whether it would, once `given_back` more pages were free.
  bool can_merge(int64_t num_pages, int64_t keep_available, int64_t given_back = 0) const;
  bool has_merge(AdapterId adapter) const { return merges_.contains(adapter); }
  const std::vector<PageId>& merge_pages(AdapterId adapter) const { return merges_.at(adapter); }
  // Frees them and returns how many pages that were. Requires: nobody writes or reads them any more.
  int64_t release_merge(AdapterId adapter);

  // Frees everything that is only cached. For tests and for giving memory back.
  void evict_all();
  void check_integrity() const;
  // The same for the pages [begin, begin + count) only: each is used by whom it says, and by nobody else.
  // O(count + pages of adapters and merged layers).
  void check_slice(int64_t begin, int64_t count) const;

 private:
  friend struct PoolCorruption;  // tests/memory: breaks what the checks must notice
  struct KvPage {
    int32_t references = 0;
    bool published = false;
    BlockKey key{};
    AdapterId adapter = kBaseModel;  // while published
    bool found = false;              // again, since it was published
  };
  struct Resident {
    AdapterState state = AdapterState::kLoading;
    std::vector<PageId> pages;
    int64_t pins = 0;
    int64_t num_pages() const { return static_cast<int64_t>(pages.size()); }
    bool cached() const { return state == AdapterState::kResident && pins == 0; }
  };
  struct KeyHash {
    size_t operator()(const BlockKey& key) const;
  };

  void check_kv(PageId page) const;
  void evict(const std::optional<EvictionOrder::Victim>& victim);  // Requires: there is one
  void evict_kv(PageId page);
  void evict_adapter(AdapterId adapter);
  // Requires: num_available() >= num_pages.
  void make_room(int64_t num_pages);
  std::vector<PageId> take(PageUse use, int64_t num_pages);  // Requires: so many are free
  void cache_adapter(AdapterId adapter, Resident& resident);
  void uncache_adapter(AdapterId adapter, Resident& resident);

  PagePool pool_;
  EvictionOrder order_;

  std::vector<KvPage> kv_;  // by page
  using Published = std::unordered_map<BlockKey, PageId, KeyHash>;
  Published published_;
  std::vector<Published::node_type> unused_nodes_;  // of evicted pages, for the next ones: steps allocate nothing

  std::unordered_map<AdapterId, Resident> adapters_;
  int64_t cached_adapter_pages_ = 0;
  int64_t evicted_adapters_ = 0;
  std::function<void(AdapterId)> evicted_;
  std::unordered_map<AdapterId, std::vector<PageId>> merges_;
};

}  // namespace lk
