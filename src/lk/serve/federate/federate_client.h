// SPDX-License-Identifier: Apache-2.0
// `lorikeet federate client --server`: joins a federated run over HTTP (federate_paths.h), trains what it is asked for
// until the run is over, and outlives servers and networks that go away for a while.
//
// In its state directory: the round file as far as it has come, the update until the server has taken it, with fedsa
// the client's own factors. Killed and started again it goes on with these: it sends the same bytes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "lk/federated/exchange.h"
#include "lk/net/http_client.h"

namespace lk {

struct FederateClientOptions {
  std::string server;  // http(s)://HOST:PORT
  std::string key;     // of scope federate
  std::string tls_ca;  // authorities (PEM) instead of the system's
  std::string base, data, state;
  // Loads the base for training in this type, which the run says.
  std::function<Result<std::shared_ptr<const TrainBase>>(DType act)> open_base;
  std::chrono::milliseconds patience{600'000};  // with a server that does not answer
  std::chrono::milliseconds pause{1'000};       // before the first repetition; twice as long each time, to 16 times
  std::function<void(std::string_view event, std::string_view detail)> log;
};

// Until all rounds are over. kFailedPrecondition: the server's base or run is another; kPermissionDenied: the key;
// kUnavailable: patience is at its end; kCancelled by `stop`; else what keeps this client from training (the server is
// told).
Status run_federate_client(const FederateClientOptions& options, const AskStop& stop);

}  // namespace lk
