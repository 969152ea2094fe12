// SPDX-License-Identifier: Apache-2.0
// The web console: static files inside the program. Nothing is loaded from elsewhere.
#pragma once

#include <optional>
#include <string_view>

#include "lk/net/http_server.h"

namespace lk {

struct ConsoleFile {
  std::string_view body;
  std::string_view content_type;
  std::string_view etag;  // strong, with its quotes: answer If-None-Match with 304
};

// "/", "/console/console.css", "/console/console.js", "/console/icon.svg". Any other path: none.
std::optional<ConsoleFile> console_file(std::string_view path);

std::string_view console_page();  // the body of "/"

// The Content-Security-Policy header of "/": scripts, styles and connections of this server only, nothing inline, no
// frames. Send "X-Content-Type-Options: nosniff" and "Cache-Control: no-cache" with every file.
std::string_view console_csp();

// The answer to a GET of one of these paths; none for any other.
std::optional<HttpResponse> console_response(const HttpRequest& request);

// Whether an If-None-Match header names this tag ("*", or in the list; a weak form counts).
bool etag_matches(std::string_view if_none_match, std::string_view etag);

}  // namespace lk
