// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/page_pool.h"

#include <limits>

#include "lk/base/check.h"

namespace lk {

PagePool::PagePool(int64_t num_pages) {
  LK_CHECK(num_pages >= 0 && num_pages < std::numeric_limits<PageId>::max());
  use_.assign(static_cast<size_t>(num_pages), PageUse::kFree);
  free_.reserve(use_.size());
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<PageId>(page));
  count_[0] = num_pages;
}

std::optional<PageId> PagePool::try_alloc(PageUse use) {
  if (free_.empty()) return std::nullopt;
  const PageId page = free_.back();
  free_.pop_back();
  use_[static_cast<size_t>(page)] = use;
  --count_[0];
  ++count_[static_cast<size_t>(use)];
  return page;
}

bool PagePool::try_alloc(PageUse use, std::span<PageId> out) {
  if (num_free() < static_cast<int64_t>(out.size())) return false;
  for (PageId& page : out) page = *try_alloc(use);
  return true;
}

void PagePool::free(std::span<const PageId> pages) {
  for (PageId page : pages) {
    const auto p = static_cast<size_t>(page);
    LK_CHECK(page >= 0 && p < use_.size() && use_[p] != PageUse::kFree, "page {} freed twice or never taken", page);
    --count_[static_cast<size_t>(use_[p])];
    ++count_[0];
    use_[p] = PageUse::kFree;
    free_.push_back(page);  // last freed is first reused: its lines may still be in the cache
  }
}

void PagePool::check_integrity() const {
  std::array<int64_t, kNumPageUses> count{};
  for (PageUse use : use_) ++count[static_cast<size_t>(use)];
  LK_CHECK(count == count_ && num_free() == count_[0], "page counts disagree with the page table");
  std::vector<bool> listed(use_.size());
  for (PageId page : free_) {
    const auto p = static_cast<size_t>(page);
    LK_CHECK(use_[p] == PageUse::kFree && !listed[p], "page {} is on the free list, and in use or there twice", page);
    listed[p] = true;
  }
}

}  // namespace lk
