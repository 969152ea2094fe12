// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/reservation.h"

#include <algorithm>

namespace lk {

// The peak comes just before some sequence ends. Then those with more to make, and itself, have grown by its remaining
// tokens, and those with less are gone.
int64_t Reservation::peak_pages(int64_t page_tokens) {
  std::sort(sequences_.begin(), sequences_.end(),
            [](const Growing& a, const Growing& b) { return a.remaining > b.remaining; });
  int64_t peak = 0, tokens = 0, count = 0;
  for (const Growing& sequence : sequences_) {
    tokens += sequence.tokens;
    ++count;
    // Each sequence's last page may be all but empty.
    peak = std::max(peak, (tokens + count * (sequence.remaining + page_tokens - 1)) / page_tokens);
  }
  return peak;
}

}  // namespace lk
