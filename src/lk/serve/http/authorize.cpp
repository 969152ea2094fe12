// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/authorize.h"

#include <ctime>

namespace lk {
namespace {

Scope scope_of(Access access) {
  switch (access) {
    case Access::kInfer:
      return Scope::kInfer;
    case Access::kAdapters:
      return Scope::kAdapters;
    case Access::kMetrics:
      return Scope::kMetrics;
    case Access::kFleet:
      return Scope::kFleet;
    case Access::kFederate:
      return Scope::kFederate;
    default:
      return Scope::kAdmin;
  }
}

}  // namespace

std::string authorization_of(const HttpRequest& request) {
  const std::string_view key = request.header("authorization"), other = request.header("x-api-key");
  return key.empty() && !other.empty() ? fmt::format("Bearer {}", other) : std::string(key);
}

std::optional<ApiError> check_scope(const Principal& principal, Access access) {
  const Scope needed = scope_of(access);
  if (access == Access::kOpen || access == Access::kAnyKey || principal.has(needed)) return std::nullopt;
  return ApiError{
      .status = 403,
      .message = fmt::format("this API key lacks the scope \"{}\"", format_scopes(static_cast<uint8_t>(needed))),
      .type = "permission_error",
      .code = "insufficient_scope"};
}

ApiResult<Principal> authenticate(const KeyRing& ring, const HttpRequest& request, Access access) {
  Result<Principal> principal = ring.authenticate(authorization_of(request), std::time(nullptr));
  if (!principal.ok()) return api_error(principal.status());
  if (std::optional<ApiError> error = check_scope(*principal, access)) return std::move(*error);
  return std::move(principal).value();
}

}  // namespace lk
