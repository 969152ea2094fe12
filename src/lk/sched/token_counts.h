// SPDX-License-Identifier: Apache-2.0
// TokenCounts: the distinct tokens of a sequence and how often each is in its output. Adding a token costs the same
// however long the sequence is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lk/base/rng.h"

namespace lk {

class TokenCounts {
 public:
  void add(int32_t token, bool output) {
    if (2 * (counts_.size() + 1) > slots_.size()) grow();
    int32_t& slot = slots_[slot_of(token)];
    if (slot < 0) {
      slot = static_cast<int32_t>(counts_.size());
      counts_.emplace_back(token, 0);
    }
    counts_[static_cast<size_t>(slot)].second += output ? 1 : 0;
  }
  // {token, times in the output (0: only in the prompt)}, in the order of first appearance.
  std::span<const std::pair<int32_t, int32_t>> all() const { return counts_; }

 private:
  size_t slot_of(int32_t token) const {
    size_t slot = mix64(static_cast<uint64_t>(token));
    while (slots_[slot &= slots_.size() - 1] >= 0 && counts_[static_cast<size_t>(slots_[slot])].first != token) ++slot;
    return slot;
  }
  void grow() {
    slots_.assign(std::max<size_t>(64, 2 * slots_.size()), -1);
    for (size_t i = 0; i < counts_.size(); ++i) slots_[slot_of(counts_[i].first)] = static_cast<int32_t>(i);
  }

  std::vector<std::pair<int32_t, int32_t>> counts_;
  std::vector<int32_t> slots_;  // hash table of places in counts_, a power of two, at most half full; -1 = empty
};

}  // namespace lk
