// SPDX-License-Identifier: Apache-2.0
// The C library's heap: how much of it is in use, and giving back what is not. A request that needs much memory for a
// moment (a grammar of many states) leaves its thread's heap large: free, but resident, because something small that
// lives on (a cached grammar) keeps the heap from shrinking. With some threads and hours that is most of what a server
// seems to use.
#pragma once

#include <cstdint>

namespace lk {

struct HeapStats {
  int64_t used_bytes = 0;  // allocated, blocks with a mapping of their own included
  int64_t free_bytes = 0;  // kept for later; pages given back to the system are still counted
};
// Blocks of a megabyte and more are given back to the system as soon as they are freed, and the heap of a thread keeps
// some megabytes: left to itself the C library raises both bounds to 32 and 64 MiB for each thread that once had a
// large block. For the whole process; before there are threads.
void keep_heap_small();

HeapStats
read_heap_stats();  // Thread safe; takes the lock of each of the heap's arenas for a moment. Zeros under a sanitizer.

// Decides when giving memory back is worth the work. One thread.
class HeapTrimmer {
 public:
  // Trims once resident memory has grown by `step_bytes` and so much of the heap is free.
  explicit HeapTrimmer(int64_t step_bytes = int64_t{8} << 20) : step_bytes_(step_bytes) {}
  // To be called about once a second: costs a read of /proc, unless there is something to do. Returns whether it
  // trimmed.
  bool tick();

 private:
  const int64_t step_bytes_;
  int64_t lowest_bytes_ = 0;  // resident since the last trim; 0 = none yet
};

}  // namespace lk
