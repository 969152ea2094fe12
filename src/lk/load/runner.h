// SPDX-License-Identifier: Apache-2.0
// Drives a server: sends requests when the arrival process or the closed loop says so, and records every answer.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "lk/load/arrivals.h"
#include "lk/load/report.h"
#include "lk/net/http_client.h"

namespace lk::load {

// One request as the runner sends it.
struct PlannedRequest {
  std::string url, body;
  int adapter = -1;
  int64_t max_tokens = 0;
};

struct RunProgress {
  double elapsed_s = 0;
  int64_t sent = 0, finished = 0, failed = 0, in_flight = 0;
};

struct RunOptions {
  bool open_loop = false;
  ArrivalKind arrival = ArrivalKind::kPoisson;
  double rate = 1, cv = 1;    // of an open loop
  int64_t max_in_flight = 0;  // closed loop: how many at once; open loop: a cap, 0 = none
  int64_t num_requests = 0;   // 0 = until duration_s
  double duration_s = 0;      // no request is sent after this; 0 = until num_requests
  bool stream = true;
  uint64_t seed = 1;
  std::chrono::milliseconds timeout{600'000};
  HttpHeaders headers;
  std::function<PlannedRequest(int64_t index)> plan;
  std::function<bool()> interrupted;                    // asked often; true cancels what is in flight
  std::function<void(const RunProgress&)> on_progress;  // about twice a second
};

struct RunResult {
  std::vector<RequestRecord> records;
  RunFacts facts;
  bool was_interrupted = false;
};

// Blocks until every request is done.
RunResult run_load(HttpClient& client, const RunOptions& options);

}  // namespace lk::load
