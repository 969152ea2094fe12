// SPDX-License-Identifier: Apache-2.0
// Metrics in Prometheus text format: own names (lorikeet_*) and the vLLM names that routers, dashboards and benchmark
// tools read. Label values that clients can invent (adapters, tenants) are capped; what exceeds the cap is counted as
// "other". Counters that mirror totals of the snapshot never fall, even when scrapes with older snapshots overtake each
// other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/observe/snapshot.h"

namespace lk {

// One finished request. Durations in seconds.
struct RequestRecord {
  std::string_view endpoint;  // "chat", "completions", "responses", "messages", "score", "embeddings"
  std::string_view tenant;    // "" without keys
  std::string_view key;       // its id; "" without keys
  std::string_view adapter;   // name, "base" for none
  std::string_view finish;    // "stop", "length", "cancelled", "error", "tool_calls", "deadline"
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0, max_tokens = 0, n = 1;
  double queue_seconds = 0;         // arrival to first step
  double time_to_first_token = -1;  // arrival to first token; < 0: there was none
  double e2e_seconds = 0;
};

class Metrics {
 public:
  struct Options {
    std::string model_name;
    std::string version;
    int max_label_values = 200;  // per label; the first that come keep their name
  };
  static std::unique_ptr<Metrics> create(const Options& options);
  virtual ~Metrics() = default;

  // Thread safe, cheap (called for every request, and token_gap for every token).
  virtual void request_finished(const RequestRecord& record) = 0;
  virtual void token_gap(double seconds) = 0;
  virtual void step_finished(int64_t num_tokens, double seconds) = 0;  // tokens computed by the step
  virtual void events_delivered(
      double seconds) = 0;  // from the end of a step until a shard has sent its events to the sockets
  // An io thread ran one callback: how long nobody else on it was served, and how much of that it worked.
  virtual void io_turn(double seconds, double cpu_seconds) = 0;
  virtual void request_abandoned(
      double seconds) = 0;  // from the loss of its connection until the engine had freed what it held
  virtual void request_refused(std::string_view reason,
                               std::string_view tenant) = 0;  // "auth", "rate_limit", "overload", "invalid", ...
  virtual void field_ignored(std::string_view field) = 0;
  virtual void http_request(std::string_view route, int status, double seconds) = 0;  // route pattern, not path
  virtual void adapter_load(double seconds, bool ok) = 0;
  virtual void state_write_failed() = 0;  // a change that could not be stored

  // The whole exposition (text/plain; version=0.0.4).
  virtual std::string scrape(const ServerSnapshot& snapshot) = 0;
};

}  // namespace lk
