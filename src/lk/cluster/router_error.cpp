// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/router_error.h"

namespace lk {

HttpResponse router_refusal(int status, std::string_view message, std::string_view code, Dialect dialect) {
  const std::string_view type = status >= 500 ? "server_error" : "invalid_request_error";
  HttpResponse response{
      .status = status,
      .body = error_body(dialect, status, {.message = message, .type = type, .param = "", .code = code})};
  if (status == 503) response.headers.emplace_back("retry-after", "1");
  if (status == 401) response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

}  // namespace lk
