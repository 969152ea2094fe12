// SPDX-License-Identifier: Apache-2.0
// Where a command listens and what its connections may take: options that `serve` and `route` share.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "lk/net/http_server.h"

namespace lk::apps {

struct ListenFlags {
  std::string host = "127.0.0.1", unix_socket, max_body = "8MiB", tls_cert, tls_key;
  int port = 8000;
  int io_threads = 2;
  HttpLimits limits;

  void add_to(CLI::App& command);  // to its group "Network"
  Result<std::vector<HttpListen>> listen() const;
  Result<HttpLimits> http_limits() const;
};

// Every connection is a file descriptor.
void raise_file_limit(int64_t wanted);

}  // namespace lk::apps
