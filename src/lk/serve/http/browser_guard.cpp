// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/browser_guard.h"

#include <arpa/inet.h>

#include <algorithm>

namespace lk {
namespace {

constexpr std::string_view kExposed =
    "x-request-id, x-adapter, x-queue-time-ms, x-time-to-first-token-ms, x-total-time-ms, retry-after";
constexpr std::string_view kDefaultHeaders = "authorization, content-type, x-api-key, x-request-id, x-request-timeout";
constexpr std::string_view kPreflightSeconds = "600";
constexpr std::string_view kHostChars = "abcdefghijklmnopqrstuvwxyz0123456789.-_:[]";

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; });
  return out;
}

// "http://localhost:3000/x" -> "localhost:3000".
std::string_view authority_of(std::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme == std::string_view::npos) return url;
  url.remove_prefix(scheme + 3);
  return url.substr(0, url.find_first_of("/?"));
}

// The name the client used for this server. A target in absolute form overrules Host (RFC 9112, 3.2.2).
std::string host_of(const HttpRequest& request) {
  return lower(request.target.find("://") < request.target.find_first_of("/?") ? authority_of(request.target)
                                                                               : request.header("host"));
}

bool is_origin(std::string_view text) {
  const size_t scheme = text.find("://");
  if (scheme == std::string_view::npos || scheme == 0) return false;
  const std::string_view authority = text.substr(scheme + 3);
  return text.substr(0, scheme).find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789+-.") ==
             std::string_view::npos &&
         !authority.empty() && authority.find_first_not_of(kHostChars) == std::string_view::npos;
}

// Names of header fields, as a browser lists them.
bool is_field_list(std::string_view text) {
  return !text.empty() && text.size() <= 1024 &&
         lower(text).find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-_, ") == std::string::npos;
}

}  // namespace

Result<BrowserGuard> BrowserGuard::create(std::vector<std::string> origins) {
  BrowserGuard guard;
  for (std::string& origin : origins) {
    origin = lower(origin);
    if (origin == "*") {
      guard.any_origin_ = true;
    } else if (!is_origin(origin)) {
      return invalid_argument(
          "the origin \"{}\" is not of the form scheme://host or scheme://host:port, without a path", origin);
    }
    guard.origins_.push_back(std::move(origin));
  }
  return guard;
}

bool BrowserGuard::allows(std::string_view origin) const {
  if (origin.empty()) return false;
  return any_origin_ || std::find(origins_.begin(), origins_.end(), lower(origin)) != origins_.end();
}

std::optional<ApiError> BrowserGuard::check(const HttpRequest& request, bool any_host) const {
  if (request.peer == "unix") return std::nullopt;
  const std::string_view origin = request.header("origin");
  const std::string host = host_of(request);
  if (!any_host && !host.empty() && !is_literal_host(host))
    return ApiError{.status = 403,
                    .message =
                        "while the server has no API keys it answers to addresses and localhost only, not to "
                        "other names of this machine: create a key, or start it with --insecure",
                    .type = "permission_error",
                    .code = "foreign_host"};
  if (!origin.empty() && !allows(origin) && lower(authority_of(origin)) != host)
    return ApiError{.status = 403,
                    .message =
                        "requests of web pages of other origins are refused while the server has no API keys: "
                        "--allow-origin names those that are welcome",
                    .type = "permission_error",
                    .code = "foreign_origin"};
  return std::nullopt;
}

bool BrowserGuard::is_preflight(const HttpRequest& request) const {
  return request.method == "OPTIONS" && !request.header("access-control-request-method").empty() &&
         allows(request.header("origin"));
}

HttpHeaders BrowserGuard::preflight_headers(const HttpRequest& request, std::string_view methods) const {
  HttpHeaders headers;
  add_headers(request, headers);
  const std::string_view asked = request.header("access-control-request-headers");
  headers.emplace_back("access-control-allow-methods", methods);
  // "*" would not cover Authorization, and client libraries send fields of their own: what was asked for is allowed.
  headers.emplace_back("access-control-allow-headers", is_field_list(asked) ? asked : kDefaultHeaders);
  headers.emplace_back("access-control-max-age", kPreflightSeconds);
  if (request.header("access-control-request-private-network") == "true")
    headers.emplace_back("access-control-allow-private-network", "true");
  return headers;
}

void BrowserGuard::add_headers(const HttpRequest& request, HttpHeaders& headers) const {
  if (origins_.empty()) return;
  if (!any_origin_) headers.emplace_back("vary", "Origin");  // no cache may show one site's answer to another
  const std::string_view origin = request.header("origin");
  if (!allows(origin)) return;
  headers.emplace_back("access-control-allow-origin", any_origin_ ? "*" : origin);
  headers.emplace_back("access-control-expose-headers", kExposed);
}

}  // namespace lk
