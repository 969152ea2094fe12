// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/router_error.h"

#include <boost/json.hpp>

#include "lk/base/json_text.h"

namespace lk {

std::string router_error(int status, std::string_view message, std::string_view code) {
  return json_text(boost::json::object{{"error",
                                        {{"message", message},
                                         {"type", status >= 500 ? "server_error" : "invalid_request_error"},
                                         {"param", nullptr},
                                         {"code", code}}}});
}

HttpResponse router_refusal(int status, std::string_view message, std::string_view code) {
  HttpResponse response{.status = status, .body = router_error(status, message, code)};
  if (status == 503) response.headers.emplace_back("retry-after", "1");
  if (status == 401) response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

}  // namespace lk
