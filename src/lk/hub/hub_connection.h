// SPDX-License-Identifier: Apache-2.0
// One HTTP exchange with the hub, or with a host that it redirects to: libcurl with its own limits set and nothing
// followed. Proxies are those of HTTPS_PROXY, NO_PROXY and so on, as libcurl reads them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lk/base/status.h"
#include "lk/base/stop.h"
#include "lk/hub/hub_settings.h"

namespace lk {

struct HubUrl {
  std::string text;    // whole, absolute
  std::string origin;  // "https://huggingface.co:443"
  bool tls = false;
};

// http:// and https:// alone, without a user's name; `text` may be relative to `base`.
Result<HubUrl> parse_hub_url(const std::string& text, const std::string& base = "");

struct HubRequest {
  HubUrl url;
  bool head = false;                         // without a body
  std::string token;                         // empty: none is sent
  int64_t begin = 0;                         // first byte that is wanted
  std::chrono::milliseconds timeout{10000};  // longest wait for a connection, and for the next byte
  bool small = true;                         // all of it ends after six times that
};

struct HubReply {
  int status = 0;
  std::map<std::string, std::string, std::less<>> headers;  // names in lower case; of equal ones the last

  std::string_view header(std::string_view name) const;  // empty when absent
  int64_t length(std::string_view name) const;           // a number of bytes, or -1
};

// Not thread safe: one per thread. Keeps connections between exchanges.
class HubConnection {
 public:
  using OnHead = std::function<Status(const HubReply&)>;
  using OnBody = std::function<Status(std::span<const std::byte>)>;

  // kUnsupported in a build without libcurl.
  static Result<std::unique_ptr<HubConnection>> open(const HubSettings& settings, AskStop stop = {});
  virtual ~HubConnection() = default;

  // on_head comes before the first piece of a body, or at the end without one. What either returns ends the exchange
  // and is returned. kUnavailable: nobody answered, or the connection broke, and another try may help;
  // kFailedPrecondition: it will not, as with certificates. kCancelled: stopped, also while nothing comes.
  virtual Result<HubReply> exchange(const HubRequest& request, const OnHead& on_head, const OnBody& on_body) = 0;
};

}  // namespace lk
