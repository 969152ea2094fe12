// SPDX-License-Identifier: Apache-2.0
// Paths of the API that are about a fleet.
#pragma once

#include <string_view>

namespace lk {

inline constexpr std::string_view kFleetStatePath = "/v1/fleet/state";         // of a replica, for routers
inline constexpr std::string_view kFleetPrefetchPath = "/v1/fleet/prefetch/";  // NAME; of a replica, for routers
inline constexpr std::string_view kFleetStatusPath = "/v1/fleet/status";       // of a router, beside a server's routes

}  // namespace lk
