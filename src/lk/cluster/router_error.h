// SPDX-License-Identifier: Apache-2.0
// What a router says itself when it refuses. Private to the router.
#pragma once

#include <string_view>

#include "lk/cluster/dialect.h"
#include "lk/net/http_server.h"

namespace lk {

// "server_error" or, with a status below 500, "invalid_request_error"; a 503 with Retry-After.
HttpResponse router_refusal(int status, std::string_view message, std::string_view code,
                            Dialect dialect = Dialect::kOpenAi);

}  // namespace lk
