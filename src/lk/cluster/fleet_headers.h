// SPDX-License-Identifier: Apache-2.0
// Header fields between routers and replicas. What clients send under names that begin so never reaches a replica.
#pragma once

#include <string_view>

namespace lk {

inline constexpr std::string_view kFleetHeaders = "x-lorikeet-";
// To a replica:
inline constexpr const char* kFleetKeyHeader = "x-lorikeet-fleet";  // the router's own key, of scope fleet
inline constexpr const char* kPrincipalHeader =
    "x-lorikeet-principal";                                         // whom it let in (serve/access/principal_json.h)
inline constexpr const char* kGoesOnHeader = "x-lorikeet-goes-on";  // the answer was begun by another replica
inline constexpr const char* kRouterHeader = "x-lorikeet-router";   // the router's name, where it listens to reports
// From a replica:
inline constexpr const char* kTokensHeader = "x-lorikeet-tokens";  // of prompt and output that a whole answer took

// From a router:
inline constexpr const char* kReplicasHeader = "x-lorikeet-replicas";  // "2/3": so many of all had part in the answer

}  // namespace lk
