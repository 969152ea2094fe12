// SPDX-License-Identifier: Apache-2.0
// Reservation: the most pages that a set of sequences will hold at any time, when each grows by one token a step until
// it ends (the admission rule of S-LoRA's artifact and of LightLLM, in pages).
#pragma once

#include <cstdint>
#include <vector>

namespace lk {

class Reservation {
 public:
  void clear() { sequences_.clear(); }
  // A sequence of `tokens` that will make `remaining` more.
  void add(int64_t tokens, int64_t remaining) { sequences_.push_back({tokens, remaining}); }
  // Upper bound: a page is counted whole. O(n log n).
  int64_t peak_pages(int64_t page_tokens);

 private:
  struct Growing {
    int64_t tokens, remaining;
  };
  std::vector<Growing> sequences_;
};

}  // namespace lk
