// SPDX-License-Identifier: Apache-2.0
// What a request is refused with, by servers and routers alike.
#pragma once

#include <string>
#include <string_view>

#include "lk/net/http_server.h"
#include "lk/serve/access/tenant_limiter.h"
#include "lk/serve/openai/openai.h"

namespace lk {

ApiError overloaded(double retry_after_seconds, std::string message = "the server is overloaded, try again later");
// What a tenant's limits refuse.
ApiError rate_limited(const TenantLimiter::Decision& decision);
// As the answer to a request that is refused.
HttpResponse error_response(const ApiError& error, Dialect dialect = Dialect::kOpenAi);
// x-request-id, and as clients of the dialect look for it.
void add_request_id(HttpHeaders& headers, const std::string& id, Dialect dialect);
// For metrics: "rate_limit", "auth", ...
std::string_view refusal_reason(int status);

}  // namespace lk
