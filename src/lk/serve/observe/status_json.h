// SPDX-License-Identifier: Apache-2.0
// The JSON of GET /v1/status and GET /v1/adapters. Both say what the snapshot holds: the caller leaves out what the
// client may not see (other tenants, paths).
#pragma once

#include <string>
#include <vector>

#include "lk/serve/adapters/known_adapter.h"
#include "lk/serve/observe/snapshot.h"

namespace lk {

// {"object": "status", "ready", "requests": {...}, "tokens": {...}, "pool": {...}, "adapters": {"device": n, ...},
// ...}. Adapters are counted, and listed only while they have requests in flight (256 at most): this is polled every
// second.
std::string format_status(const ServerSnapshot& snapshot);

// {"object": "list", "data": [{"id": "name@version", "object": "adapter", "name", ...}], "first_id", "last_id",
// "has_more"}
std::string format_adapters(const std::vector<AdapterSnapshot>& adapters, bool has_more = false,
                            const std::vector<WatchedDirectory>& directories = {});
// One entry of it.
std::string format_adapter(const AdapterSnapshot& adapter);

}  // namespace lk
