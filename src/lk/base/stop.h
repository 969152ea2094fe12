// SPDX-License-Identifier: Apache-2.0
// Ending what takes long when somebody asks for it.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "lk/base/status.h"

namespace lk {

// Asked again and again by what may take long: true ends it with kCancelled. Empty: never.
using AskStop = std::function<bool()>;

inline Status check_stop(const AskStop& stop) { return stop && stop() ? cancelled("interrupted") : Status(); }

// Sleeps; kCancelled within 50 ms of being asked to stop.
inline Status wait_unless_stopped(std::chrono::milliseconds pause, const AskStop& stop) {
  using Clock = std::chrono::steady_clock;
  constexpr Clock::duration kLook = std::chrono::milliseconds(50);
  const Clock::time_point end = Clock::now() + pause;
  for (Clock::time_point now = Clock::now(); now < end; now = Clock::now()) {
    LK_RETURN_IF_ERROR(check_stop(stop));
    std::this_thread::sleep_for(std::min(kLook, end - now));
  }
  return check_stop(stop);
}

}  // namespace lk
