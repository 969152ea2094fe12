// SPDX-License-Identifier: Apache-2.0
// Memory, file descriptors and threads of this process, from /proc/self. About as cheap as a scrape is rare; not for
// every step.
#pragma once

#include <cstdint>

namespace lk {

struct ProcessStats {
  int64_t resident_bytes = 0;
  int64_t open_files = 0;
  int64_t threads = 0;
};

// What cannot be read (no /proc, no descriptor left) is 0. Thread safe.
ProcessStats read_process_stats();

}  // namespace lk
