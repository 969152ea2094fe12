// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/heap_trimmer.h"

#include <malloc.h>

#include <algorithm>

#include "lk/serve/observe/process_stats.h"

namespace lk {

void keep_heap_small() {
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 4 << 20);
}

HeapStats read_heap_stats() {
  const struct mallinfo2 info = ::mallinfo2();
  return {.used_bytes = static_cast<int64_t>(info.uordblks + info.hblkhd),
          .free_bytes = static_cast<int64_t>(info.fordblks)};
}

// What was given back still counts as free in the heap's books, so the growth of resident memory is what says that
// there is something to give back again.
bool HeapTrimmer::tick() {
  const int64_t resident = read_process_stats().resident_bytes;
  lowest_bytes_ = lowest_bytes_ == 0 ? resident : std::min(lowest_bytes_, resident);
  if (resident - lowest_bytes_ < step_bytes_ || read_heap_stats().free_bytes < step_bytes_) return false;
  ::malloc_trim(0);
  lowest_bytes_ = read_process_stats().resident_bytes;
  return true;
}

}  // namespace lk
