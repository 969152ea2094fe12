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
  // tier. `dropped(id)`: a staged one is no longer in host memory nor about to be read, because its request went away
  // and the tier took its place.
  template <class Dropped>
  bool stage(AdapterId adapter, int64_t bytes, int64_t tier_bytes, Dropped dropped) {
    if (std::ranges::any_of(staged_, [&](const Staged& staged) { return staged.adapter == adapter; })) return false;
    const int64_t most = tier_bytes / 2;
    if (bytes_ + bytes > most) remove_if([&](const Staged& staged) { return dropped(staged.adapter); });
    if (bytes_ + bytes > most) return false;
    staged_.push_back({adapter, bytes});
    bytes_ += bytes;
    return true;
  }
  // Its load starts, or nobody will ask for it any more.
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
