// SPDX-License-Identifier: Apache-2.0
// PagePool: which pages of the arena are taken, and for what. Pure accounting: page numbers, never pointers. Any page
// is as good as any other, so every page is taken and returned in O(1).
//
// Invariant (check_integrity): every page is free or has exactly one use; the counts add up to num_pages.
// Thread safety: none; owned by the scheduler on the engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace lk {

using PageId = int32_t;

enum class PageUse : uint8_t { kFree, kKv, kAdapter, kMerged, kTrain };
inline constexpr int kNumPageUses = 5;

class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t num_pages() const { return static_cast<int64_t>(use_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used(PageUse use) const { return count_[static_cast<size_t>(use)]; }
  PageUse use(PageId page) const { return use_[static_cast<size_t>(page)]; }

  std::optional<PageId> try_alloc(PageUse use);
  // All of out.size() pages, or none.
  bool try_alloc(PageUse use, std::span<PageId> out);
  // Requires: every page is in use.
  void free(std::span<const PageId> pages);
  void free(PageId page) { free({&page, 1}); }

  void check_integrity() const;  // aborts on a broken invariant

 private:
  std::vector<PageUse> use_;
  std::vector<PageId> free_;  // taken from the back
  std::array<int64_t, kNumPageUses> count_{};
};

}  // namespace lk
