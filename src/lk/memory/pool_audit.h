// SPDX-License-Identifier: Apache-2.0
// PoolAudit: checks a pool's bookkeeping a slice at a time, while nobody needs the engine thread. A broken invariant
// ends the process with its description, as everywhere (base/check.h): better a restart than somebody else's cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lk/memory/unified_pool.h"

namespace lk {

class PoolAudit {
 public:
  static constexpr int64_t kSlicePages = 16384;  // well under a millisecond

  // Something happened to the pool: every page is due again.
  void restart() { due_ = kAll; }
  bool done() const { return due_ == 0; }
  int64_t num_checked() const { return num_checked_; }  // pages, since the start

  void check_slice(const UnifiedPool& pool) {
    due_ = std::min(due_, pool.num_pages());
    const int64_t count = std::min({kSlicePages, due_, pool.num_pages() - next_});
    pool.check_slice(next_, count);
    num_checked_ += count;
    due_ -= count;
    next_ = next_ + count == pool.num_pages() ? 0 : next_ + count;
  }

 private:
  static constexpr int64_t kAll = INT64_MAX;
  int64_t due_ = kAll;  // pages until all have been checked since the last change
  int64_t next_ = 0;    // goes on where it was, so that short pauses reach every page in turn
  int64_t num_checked_ = 0;
};

}  // namespace lk
