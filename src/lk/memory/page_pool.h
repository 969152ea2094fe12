// SPDX-License-Identifier: Apache-2.0
// PagePool: which pages of the arena are taken, and for what. Pure accounting: page numbers, never pointers.
// Single pages are taken and returned in O(1); contiguous runs (whole matrices) are searched from the high end,
// single pages are handed out from the low end, so that runs keep finding room.
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
  int64_t num_free() const { return count_[0]; }
  int64_t num_used(PageUse use) const { return count_[static_cast<size_t>(use)]; }
  PageUse use(PageId page) const { return use_[static_cast<size_t>(page)]; }

  std::optional<PageId> try_alloc(PageUse use);
  // All of out.size() pages, or none.
  bool try_alloc(PageUse use, std::span<PageId> out);
  // First page of `length` consecutive pages.
  std::optional<PageId> try_alloc_run(PageUse use, int64_t length);
  // Takes the run [begin, begin + length). Requires: all free.
  void alloc_run_at(PageUse use, PageId begin, int64_t length);
  // Requires: every page is in use.
  void free(std::span<const PageId> pages);
  void free(PageId page) { free({&page, 1}); }

  void check_integrity() const;  // aborts on a broken invariant

 private:
  void take(PageId page, PageUse use);

  std::vector<PageUse> use_;
  std::vector<PageId> next_, prev_;  // doubly linked free list, sentinel at num_pages
  std::array<int64_t, kNumPageUses> count_{};
};

}  // namespace lk
