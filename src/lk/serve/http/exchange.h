// SPDX-License-Identifier: Apache-2.0
// Exchange: one request and its answer, from the head's admission to the line in the log.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "lk/net/http_server.h"
#include "lk/serve/access/tenant_limiter.h"
#include "lk/serve/access/usage_ledger.h"
#include "lk/serve/http/engine_service.h"
#include "lk/serve/http/refusals.h"
#include "lk/serve/http/routes.h"
#include "lk/serve/http/work_queue.h"
#include "lk/serve/observe/logging.h"
#include "lk/serve/openai/openai.h"

namespace lk {

class ServerImpl;

// Its methods are for the shard thread.
struct Exchange : std::enable_shared_from_this<Exchange> {
  ServerImpl* server = nullptr;
  HttpRequest request;
  std::shared_ptr<HttpReply> reply;
  int shard = 0;
  const Route* route = nullptr;
  std::string parameter;  // of the path
  Principal principal;
  bool from_router = false;  // it brought a key of scope fleet beside the client's own
  std::string id;            // x-request-id
  Clock::time_point arrival = Clock::now();
  // Among what its tenant may have in flight. Let go of before the answer leaves, or handed on to what the engine does.
  TenantLimiter::Place place;
  std::atomic<bool> gone{false};                              // the client left before it was answered
  std::atomic<WorkQueue::Id> work{0}, compile{0}, format{0};  // its tasks in the queues
  std::function<void()> on_gone;                              // further things to do then; shard thread

  void respond(int status, std::string body, std::string_view content_type = "application/json",
               HttpHeaders headers = {});
  void respond(HttpResponse response);
  // From any thread: respond(), a long body in parts.
  void send(int status, std::string body, std::string_view content_type = "application/json", HttpHeaders headers = {});
  // Of a stream that has begun: an error event, and its end.
  void fail(const ApiError& error, HttpHeaders headers = {});
  void fail(const Status& status) { fail(api_error(status, id)); }
  void begin_stream(HttpHeaders headers);
  void end_stream(const char* outcome);  // "ok" or "error"
  // What it took, for the line that is written at its end; once per choice.
  void count(std::string_view adapter, const KeyUsage& usage, const char* finish);
  ~Exchange();  // writes the line of a client that left
  // The client left: what waits for it is dropped.
  void leave();
  // From any thread: runs `task`, or fail(), on the exchange's shard.
  void post(std::function<void()> task);
  // On the shard: runs a part of what makes the answer; what it throws ends this request, with a 500 that names its id.
  void run(std::string_view what, const std::function<void()>& task);
  void break_down(const Status& reason);
  // Whose roots and quotas hold for what it loads; null for those who administrate.
  std::shared_ptr<const Tenant> limits() const { return principal.has(Scope::kAdmin) ? nullptr : principal.tenant; }
  void refuse(ApiError error);

 private:
  struct Computed {
    std::string adapter;
    KeyUsage usage;
    const char* finish = "";
  };
  void record(int status, const char* outcome);
  std::optional<Computed> computed_;
  bool streaming_ = false, recorded_ = false;
};

// Seconds the client is willing to wait in all.
ApiResult<double> timeout_of(const Exchange& exchange);
// What is said of a model that cannot be served to who asks.
ApiError model_error(const Status& status, const std::string& id);
LogLevel level_of_status(int status);

}  // namespace lk
