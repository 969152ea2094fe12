// SPDX-License-Identifier: Apache-2.0
// FederateDoor: `lorikeet federate server`: a Coordinator behind HTTP (federate_paths.h), with keys, limits, long polls
// and the clock. One thread has the coordinator to itself; io threads never wait for it, nor for a file.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/federated/coordinator.h"
#include "lk/net/http_server.h"
#include "lk/serve/access/state_store.h"

namespace lk {

struct FederateDoorOptions {
  std::vector<HttpListen> listen;
  HttpLimits limits;  // max_body_bytes is the run's
  std::string tls_cert, tls_key;
  int io_threads = 1;
  std::chrono::milliseconds deadline{3'600'000};  // of a round, from its sample or the server's start
  // After the last round the door stays open for clients that have not heard of it.
  std::chrono::milliseconds farewell{30'000};
  std::string version;
  std::function<void(std::string_view event, std::string_view detail)> log;  // any thread
};

class FederateDoor {
 public:
  // Rounds begin as soon as enough clients have joined.
  static Result<std::unique_ptr<FederateDoor>> start(const FederateDoorOptions& options,
                                                     std::unique_ptr<Coordinator> coordinator,
                                                     std::unique_ptr<StateStore> keys);
  virtual ~FederateDoor() = default;  // closes everything at once: what matters is on disk
  virtual std::string address(int listener) const = 0;
  // Once the run is over: OK when it is complete and clients know, else why it cannot go on. Any thread.
  virtual std::optional<Status> ended() const = 0;
};

}  // namespace lk
