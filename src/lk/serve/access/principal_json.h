// SPDX-License-Identifier: Apache-2.0
// A Principal as it travels from the router that judged its key to a replica, under the router's own key: what a
// replica needs to treat the request as its tenant's. Limits of requests and tokens stay with the router: they hold for
// the fleet, and an answer that moves is counted once.
#pragma once

#include <string>
#include <string_view>

#include "lk/serve/access/tenants.h"

namespace lk {

// Longer ones do not fit a request's head: of a tenant with some hundred patterns of adapters.
inline constexpr size_t kMaxPrincipalBytes = 8 << 10;

std::string format_principal(const Principal& principal);
// kInvalidArgument for what is none. Its tenant has no limits of requests and tokens.
Result<Principal> parse_principal(std::string_view json);

}  // namespace lk
