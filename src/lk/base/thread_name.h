// SPDX-License-Identifier: Apache-2.0
// A name for the calling thread, as `top -H` and debuggers show it: at most 15 characters.
#pragma once

#include <pthread.h>

namespace lk {

inline void set_thread_name(const char* name) { (void)pthread_setname_np(pthread_self(), name); }

}  // namespace lk
