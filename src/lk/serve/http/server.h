// SPDX-License-Identifier: Apache-2.0
// Server: `lorikeet serve`. HTTP in front of an EngineService and an AdapterRegistry: authentication, admission,
// routes, drain.
//
// Threads: shards (net) own connections and format answers; a few workers parse, render and tokenize; the engine thread
// computes; loader threads bring adapters in. A request goes shard -> worker -> engine -> shard.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/infer/memory_plan.h"
#include "lk/net/http_server.h"
#include "lk/serve/access/access_control.h"
#include "lk/serve/access/state_store.h"
#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/fleet/fleet_adapters.h"
#include "lk/serve/http/engine_service.h"
#include "lk/serve/observe/logging.h"

namespace lk {

struct ServerOptions {
  std::vector<HttpListen> listen;   // for clients
  std::optional<HttpListen> admin;  // then adapter management, status and metrics answer here only
  int io_threads = 2;               // events of a step leave in parallel
  int worker_threads = 2;
  HttpLimits limits;
  std::string tls_cert, tls_key;
  std::string version = "dev";
  std::string model_root;  // "root" of the base in /v1/models
  AdapterRegistryOptions adapters;
  EngineServiceOptions engine;
  AccessOptions access;
  std::optional<FleetAdaptersOptions> fleet;  // the registry it is a member of
  std::shared_ptr<AccountStore> accounts;     // keys and tenants; null = the state file's
  bool insecure = false;                      // keyless service beyond loopback is wanted
  std::vector<std::string> allowed_origins;   // pages that may use this server from their browsers; BrowserGuard
  bool public_metrics = false;                // /metrics and /v1/status without a key
  bool console = true;
  int64_t max_choices = 128;             // of one request: n times its prompts, or inputs to embed
  double default_timeout_seconds = 600;  // of a request that names none
  int64_t max_answer_bytes = 16 << 20;   // that is not streamed; twice that when its tokens are unusually long
  double sse_ping_seconds = 10;          // a stream that is silent for so long gets a comment; 0 = never
  std::string tool_format = "auto";      // auto, none, or a name of parse_tool_format()
  std::string reasoning = "auto";        // auto, off, or a name of parse_reasoning_format()
  int64_t max_grammar_bytes = 64 << 20;  // of compiled grammars kept
  MemoryPlan memory;                     // what the budgets here and in `adapters` come from; shown in /v1/status
  double stuck_seconds = 120;            // no step for so long: /live fails
};

// Whether every listener may be opened: without keys only those that nobody but this machine can reach, and no page of
// any site, unless that was asked for (`insecure`).
Status check_exposure(const ServerOptions& options, bool has_keys);

class Server {
 public:
  // `store` may be null (nothing survives a restart, no keys). Starts listening at once; /ready says 503 until
  // set_ready().
  static Result<std::unique_ptr<Server>> start(const ServerOptions& options, std::unique_ptr<TextEngine> engine,
                                               std::unique_ptr<StateStore> store, std::unique_ptr<Log> log);
  // What start() would refuse of listeners, certificates and keys (`store` as there), and of a server that anybody
  // could use from elsewhere.
  static Status check(const ServerOptions& options, StateStore* store);
  virtual ~Server() = default;

  virtual AdapterRegistry& adapters() = 0;
  virtual EngineService& engine() = 0;
  virtual Log& log() = 0;
  virtual std::string address(int listener) const = 0;
  // Answers a request of this process as if it had come over a unix socket; with options.listen empty nobody else can
  // ask. `done` is called once, on an io thread, at the latest when the server ends; of a stream it gets the whole.
  virtual void ask(HttpRequest request, std::function<void(HttpResponse)> done) = 0;
  virtual void set_ready(bool ready) = 0;
  // With options.fleet: from now on the fleet's routers find it there; until leave_fleet(), which takes a second or
  // two.
  virtual void join_fleet(const Member& member) = 0;
  virtual void leave_fleet() = 0;
  // Reads tenants, keys and limits again (SIGHUP). On failure the old ones stay. Changes are seen within a second
  // without it.
  virtual Status reload_keys() = 0;
  // Reads the TLS certificate and its key again (SIGHUP), for new connections. On failure the old ones stay.
  virtual Status reload_tls() = 0;
  // To be called twice a second, by one thread: writes what the log holds back, gives memory that nobody uses back to
  // the system.
  virtual void housekeep() = 0;
  // From now on /ready is 503; after `grace` nothing new is accepted.
  virtual void begin_drain(std::chrono::milliseconds grace) = 0;
  // Waits for what is in flight, at most `timeout`, then ends it with an error event. False when something had to be
  // ended.
  virtual bool finish_drain(std::chrono::milliseconds timeout) = 0;
  virtual ServerSnapshot snapshot() const = 0;
};

}  // namespace lk
