// SPDX-License-Identifier: Apache-2.0
// Keys and tenants as `lorikeet keys --json` and the server's API show them, and the times that both take.
#pragma once

#include <cstdint>
#include <string>

#include <boost/json/object.hpp>

#include "lk/serve/access/tenants.h"

namespace lk {

boost::json::object key_json(const ApiKey& key, int64_t now_unix);  // without anything of its secret
boost::json::object tenant_json(const Tenant& tenant);

// "30d" (also h, w) from now, "2027-01-31" or "2027-01-31T12:00:00Z" in UTC; "" and "never" are 0. Unix seconds.
Result<int64_t> parse_expiry(const std::string& text, int64_t now_unix);

}  // namespace lk
