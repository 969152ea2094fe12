// SPDX-License-Identifier: Apache-2.0
// The name and the priority of the calling thread.
#pragma once

#include <pthread.h>
#include <sys/resource.h>

namespace lk {

// As `top -H` and debuggers show it: at most 15 characters.
inline void set_thread_name(const char* name) { (void)pthread_setname_np(pthread_self(), name); }

// Adds to the thread's nice value (Linux keeps one per thread); threads it makes inherit it.
inline void lower_thread_priority(int nice) {
  if (nice > 0) (void)::setpriority(PRIO_PROCESS, 0, ::getpriority(PRIO_PROCESS, 0) + nice);
}

}  // namespace lk
