// SPDX-License-Identifier: Apache-2.0
// The urls HttpClient takes, and the bytes of a request.
#pragma once

#include <string>
#include <string_view>

#include "lk/net/http_client.h"

namespace lk {

struct ClientUrl {
  bool tls = false;
  std::string host;              // name or address without brackets; empty for a unix socket
  std::string port;              // digits
  std::string unix_path;         // empty for TCP
  std::string target;            // "/path?query"
  std::string host_header;       // "example.org:8000", "[::1]", "localhost" for a unix socket
  std::string pool_key() const;  // equal for requests that may share a connection
};

// http://host[:port][/target], https://..., unix:/path/to.sock[:/target]. User info is refused, a fragment dropped.
Result<ClientUrl> parse_client_url(std::string_view url);

// Request line, headers and body. Refuses names, values and methods that would break the framing, and a Content-Length
// or Transfer-Encoding of the caller's own.
Result<std::string> format_client_request(const ClientRequest& request, const ClientUrl& url);

bool is_idempotent_method(std::string_view method);

}  // namespace lk
