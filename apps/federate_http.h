// SPDX-License-Identifier: Apache-2.0
// lorikeet federate server, and the client that talks to it.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "lk/base/status.h"

namespace lk::apps {

struct HttpClientFlags {
  std::string server, key_file, server_ca;
  double patience = 600;

  void add_to(CLI::App& command);
};

// Until the run is over. kCancelled when interrupted.
Status run_http_client(const HttpClientFlags& flags, const std::string& base, const std::string& data,
                       const std::string& state, int threads, const std::string& isa);

void add_federate_server(CLI::App& federate, int& exit_code);

}  // namespace lk::apps
