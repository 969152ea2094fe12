// SPDX-License-Identifier: Apache-2.0
#include "lk/memory/page_pool.h"

#include <limits>

#include "lk/base/check.h"

namespace lk {

PagePool::PagePool(int64_t num_pages) {
  LK_CHECK(num_pages >= 0 && num_pages < std::numeric_limits<PageId>::max());
  const auto n = static_cast<size_t>(num_pages);
  use_.assign(n, PageUse::kFree);
  next_.resize(n + 1);
  prev_.resize(n + 1);
  for (size_t page = 0; page <= n; ++page) {
    next_[page] = static_cast<PageId>(page == n ? 0 : page + 1);
    prev_[page] = static_cast<PageId>(page == 0 ? n : page - 1);
  }
  count_[0] = num_pages;
}

void PagePool::take(PageId page, PageUse use) {
  const auto p = static_cast<size_t>(page);
  next_[static_cast<size_t>(prev_[p])] = next_[p];
  prev_[static_cast<size_t>(next_[p])] = prev_[p];
  use_[p] = use;
  --count_[0];
  ++count_[static_cast<size_t>(use)];
}

std::optional<PageId> PagePool::try_alloc(PageUse use) {
  if (num_free() == 0) return std::nullopt;
  const PageId page = next_[use_.size()];
  take(page, use);
  return page;
}

bool PagePool::try_alloc(PageUse use, std::span<PageId> out) {
  if (num_free() < static_cast<int64_t>(out.size())) return false;
  for (PageId& page : out) page = *try_alloc(use);
  return true;
}

std::optional<PageId> PagePool::try_alloc_run(PageUse use, int64_t length) {
  LK_CHECK(length >= 1);
  if (num_free() < length) return std::nullopt;
  int64_t found = 0;
  for (int64_t page = num_pages() - 1; page >= 0; --page) {
    found = use_[static_cast<size_t>(page)] == PageUse::kFree ? found + 1 : 0;
    if (found < length) continue;
    for (int64_t i = 0; i < length; ++i) take(static_cast<PageId>(page + i), use);
    return static_cast<PageId>(page);
  }
  return std::nullopt;
}

void PagePool::alloc_run_at(PageUse use, PageId begin, int64_t length) {
  for (int64_t i = 0; i < length; ++i) {
    const auto page = static_cast<PageId>(begin + i);
    LK_CHECK(page >= 0 && page < num_pages() && use_[static_cast<size_t>(page)] == PageUse::kFree,
             "page {} is not free", page);
    take(page, use);
  }
}

void PagePool::free(std::span<const PageId> pages) {
  const size_t sentinel = use_.size();
  for (PageId page : pages) {
    const auto p = static_cast<size_t>(page);
    LK_CHECK(page >= 0 && p < sentinel && use_[p] != PageUse::kFree, "page {} freed twice or never taken", page);
    --count_[static_cast<size_t>(use_[p])];
    ++count_[0];
    use_[p] = PageUse::kFree;
    // Last freed is first reused: its lines may still be in the cache.
    next_[p] = next_[sentinel];
    prev_[p] = static_cast<PageId>(sentinel);
    prev_[static_cast<size_t>(next_[p])] = page;
    next_[sentinel] = page;
  }
}

void PagePool::check_integrity() const {
  std::array<int64_t, kNumPageUses> count{};
  for (PageUse use : use_) ++count[static_cast<size_t>(use)];
  LK_CHECK(count == count_, "page counts disagree with the page table");
  int64_t listed = 0;
  for (auto page = static_cast<size_t>(next_[use_.size()]); page != use_.size();
       page = static_cast<size_t>(next_[page])) {
    LK_CHECK(use_[page] == PageUse::kFree, "page {} is on the free list and in use", page);
    LK_CHECK(++listed <= num_free(), "the free list has a cycle");
  }
  LK_CHECK(listed == num_free(), "the free list lost pages");
}

}  // namespace lk
