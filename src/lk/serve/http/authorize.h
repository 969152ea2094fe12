// SPDX-License-Identifier: Apache-2.0
// Whether the key that a request brings opens a route.
#pragma once

#include <optional>

#include "lk/net/http_server.h"
#include "lk/serve/access/tenants.h"
#include "lk/serve/http/routes.h"
#include "lk/serve/openai/openai.h"

namespace lk {

// The key as Authorization has it; x-api-key counts as one where there is no other.
std::string authorization_of(const HttpRequest& request);
// 401 for what is no key, 403 for one without the scope that the route needs.
ApiResult<Principal> authenticate(const KeyRing& ring, const HttpRequest& request, Access access);
std::optional<ApiError> check_scope(const Principal& principal, Access access);

}  // namespace lk
