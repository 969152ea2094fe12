// SPDX-License-Identifier: Apache-2.0
// An answer that does not end, of one text a line: how etcd's gateway and Kubernetes tell of changes.
#pragma once

#include <functional>
#include <string_view>

#include "lk/net/http_client.h"

namespace lk {

struct LineCallbacks {
  std::function<void(std::string_view line)> on_line;  // of an answer with status 200
  // Why it ended; `status` and the first bytes of an answer of another status. OK: the server ended it.
  std::function<void(const Status& ended, int status, std::string_view body)> on_end;
};

// Both on an io thread. Returns a number for HttpClient::cancel(). A line has 64 MiB at most, else kDataLoss.
int64_t open_lines(HttpClient& client, ClientRequest request, LineCallbacks callbacks);

}  // namespace lk
