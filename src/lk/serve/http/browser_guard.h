// SPDX-License-Identifier: Apache-2.0
// BrowserGuard: what web pages may do with a server. A browser is on the inside: it reaches a server that listens on
// loopback, and sends there whatever a page tells it to. Two headers give pages away, and no page can forge them:
// Origin, the site a page came from, and Host, the name under which the browser looked this machine up (a page can
// have its own site's name point here, and is then of the "same" origin).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/net/http_server.h"
#include "lk/net/listener.h"
#include "lk/serve/openai/openai.h"

namespace lk {

class BrowserGuard {
 public:
  // `origins`: pages that may use this server, as "https://app.example.org", or "*".
  static Result<BrowserGuard> create(std::vector<std::string> origins);

  // For servers without keys, where nothing else tells a page from its user. Refused are pages of other origins that
  // were not allowed and, unless `any_host`, names of this machine that anybody's name server could have given it:
  // addresses and localhost are the ones it cannot. Unix sockets are not for browsers: everything passes.
  std::optional<ApiError> check(const HttpRequest& request, bool any_host) const;

  // Cross-origin resource sharing: a browser asks first (a preflight), and shows a page the answer only if it says so.
  bool is_preflight(const HttpRequest& request) const;  // of an allowed origin
  HttpHeaders preflight_headers(const HttpRequest& request, std::string_view methods) const;
  void add_headers(const HttpRequest& request, HttpHeaders& headers) const;

  bool allows_all() const { return any_origin_; }

 private:
  bool allows(std::string_view origin) const;
  std::vector<std::string> origins_;
  bool any_origin_ = false;
};

}  // namespace lk
