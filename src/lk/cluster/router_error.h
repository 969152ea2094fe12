// SPDX-License-Identifier: Apache-2.0
// What a router says itself when it refuses, in OpenAI's form. Private to the router.
#pragma once

#include <string>
#include <string_view>

#include "lk/net/http_server.h"

namespace lk {

// {"error": {...}}; "server_error" or, with a status below 500, "invalid_request_error".
std::string router_error(int status, std::string_view message, std::string_view code);
// As an answer; a 503 with Retry-After.
HttpResponse router_refusal(int status, std::string_view message, std::string_view code);

}  // namespace lk
