// SPDX-License-Identifier: Apache-2.0
// The service manager's notification protocol (man 3 sd_notify): one datagram of NAME=VALUE lines to $NOTIFY_SOCKET.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

// "READY=1", "STOPPING=1", "STATUS=loading model", "WATCHDOG=1". OK without doing anything when no manager listens.
Status notify_service_manager(std::string_view state);
// RELOADING=1 with its time stamp; READY=1 follows when the reload is done.
Status notify_reloading();
// How often WATCHDOG=1 must come (half of it is a good rhythm); nothing when the manager does not watch this process.
std::optional<std::chrono::microseconds> watchdog_timeout();

}  // namespace lk
