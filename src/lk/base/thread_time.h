// SPDX-License-Identifier: Apache-2.0
// The processor time that the calling thread has used: what its work costs, however busy the machine is.
#pragma once

#include <time.h>

#include <chrono>

namespace lk {

inline std::chrono::nanoseconds thread_time() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace lk
