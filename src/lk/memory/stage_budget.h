// SPDX-License-Identifier: Apache-2.0
// StageBudget: which adapters may be read into host memory before their load starts. What is staged and not loaded yet
// never takes more than half of the host tier: it would push out the copies of adapters in use, or of each other. The
// engine's readers and the simulator's both ask it.
//
// Thread safety: none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lk/memory/eviction_order.h"

namespace lk {

class StageBudget {
 public:
  // Whether `adapter`, of so many bytes, is to be read now; then it counts until done(). `tier_bytes`: of the host
  // tier. `lost(id)`: a staged one is neither in host memory nor about to be read, because the tier took its place; it
  // counts no longer, and may be staged again.
  template <class Lost>
  bool stage(AdapterId adapter, int64_t bytes, int64_t tier_bytes, Lost lost) {
    remove_if([&](const Staged& staged) { return lost(staged.adapter); });
    if (std::ranges::find(staged_, adapter, &Staged::adapter) != staged_.end()) return false;
    if (bytes_ + bytes > tier_bytes / 2) return false;
    staged_.push_back({adapter, bytes});
    bytes_ += bytes;
    return true;
  }
  // Its load starts, or nobody asks for it any more.
  void done(AdapterId adapter) {
    remove_if([&](const Staged& staged) { return staged.adapter == adapter; });
  }
  int64_t bytes() const { return bytes_; }

 private:
  struct Staged {
    AdapterId adapter = kBaseModel;
    int64_t bytes = 0;
  };
  template <class Predicate>
  void remove_if(Predicate predicate) {
    std::erase_if(staged_, [&](const Staged& staged) {
      if (!predicate(staged)) return false;
      bytes_ -= staged.bytes;
      return true;
    });
  }
  std::vector<Staged> staged_;
  int64_t bytes_ = 0;
};

}  // namespace lk
