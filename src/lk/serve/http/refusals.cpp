// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/refusals.h"

#include <algorithm>
#include <chrono>

#include "lk/base/rng.h"

namespace lk {

ApiError overloaded(double retry_after_seconds, std::string message) {
  return {.status = 503,
          .message = std::move(message),
          .type = "server_error",
          .code = "overloaded",
          .retry_after_seconds = retry_after_seconds};
}

ApiError rate_limited(const TenantLimiter::Decision& decision) {
  if (decision.never) return {.status = 400, .message = decision.reason, .param = "n", .code = "too_many_choices"};
  return {.status = 429,
          .message = decision.reason,
          .type = "rate_limit_error",
          .code = "rate_limit_exceeded",
          .retry_after_seconds = std::max(1.0, decision.retry_after_seconds)};
}

HttpResponse error_response(const ApiError& error, Dialect dialect) {
  HttpResponse response{.status = error.status, .body = format_error(error, dialect)};
  if (error.retry_after_seconds > 0) {
    // Whole seconds, spread a little, so that those who were refused together do not come back together.
    thread_local Rng rng(static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()));
    const double spread = error.retry_after_seconds * (1 + 0.25 * static_cast<double>(rng.below(1000)) / 1000);
    response.headers.emplace_back(
        "retry-after", std::to_string(std::clamp(static_cast<int64_t>(spread + 0.999), int64_t{1}, int64_t{60})));
  }
  if (error.status == 401) response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

void add_request_id(HttpHeaders& headers, const std::string& id, Dialect dialect) {
  headers.emplace_back("x-request-id", id);
  if (dialect == Dialect::kAnthropic) headers.emplace_back("request-id", id);
}

std::string_view refusal_reason(int status) {
  switch (status) {
    case 400:
    case 422:
      return "invalid";
    case 401:
    case 403:
      return "auth";
    case 404:
      return "not_found";
    case 408:
      return "deadline";
    case 413:
      return "too_large";
    case 429:
      return "rate_limit";
    case 503:
      return "overload";
    default:
      return "error";
  }
}

}  // namespace lk
