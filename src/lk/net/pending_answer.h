// SPDX-License-Identifier: Apache-2.0
// PendingAnswer: one request of an HttpClient whose answer a thread waits for.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "lk/net/http_client.h"

namespace lk {

struct ClientAnswer {
  int status = 0;
  HttpHeaders headers;  // names in lower case
  std::string body;

  std::string_view header(std::string_view lower_name) const;  // first value, or ""
};

class PendingAnswer {
 public:
  // Sends. The answer's body may have this many bytes; a longer one is broken off.
  PendingAnswer(HttpClient& client, ClientRequest request, size_t most_bytes);
  int64_t id() const { return id_; }  // for HttpClient::cancel()

  // Blocks until the answer is complete, whatever its status. Once; not on a thread of the client. `stop`, if there is
  // one, is asked a few times a second, and true from it cancels. Failures are those of ClientCallbacks::on_done, and
  // kResourceExhausted for a body that is too long.
  Result<ClientAnswer> wait(const std::function<bool()>& stop = {});

 private:
  struct Shared;
  HttpClient& client_;
  std::shared_ptr<Shared> shared_;
  int64_t id_ = 0;
};

}  // namespace lk
