// SPDX-License-Identifier: Apache-2.0
// Private to server*.cpp: the routes and the state they share.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lk/grammar/grammar.h"
#include "lk/serve/access/state_thread.h"
#include "lk/serve/access/tenant_limiter.h"
#include "lk/serve/access/usage_ledger.h"
#include "lk/serve/http/browser_guard.h"
#include "lk/serve/http/exchange.h"
#include "lk/serve/http/fleet_feed.h"
#include "lk/serve/http/heap_trimmer.h"
#include "lk/serve/http/routes.h"
#include "lk/serve/http/server.h"
#include "lk/serve/http/work_queue.h"
#include "lk/serve/observe/metrics.h"
#include "lk/serve/openai/openai.h"

namespace lk {

// Whose work and bytes a request's are: its tenant's; on a server without keys its peer's, whose address is all there
// is to tell clients apart.
std::string account_of(const Tenant& tenant, const HttpRequest& request);

// What connections are held to, made of what the operator chose.
HttpLimits limits_of(const ServerOptions& options);

class ServerImpl final : public Server {
 public:
  static Result<std::unique_ptr<ServerImpl>> create(const ServerOptions& options, std::unique_ptr<TextEngine> engine,
                                                    std::unique_ptr<StateStore> store, std::unique_ptr<Log> log);
  ~ServerImpl() override;

  AdapterRegistry& adapters() override { return *registry_; }
  EngineService& engine() override { return *service_; }
  Log& log() override { return *log_; }
  std::string address(int listener) const override { return http_->address(listener); }
  void ask(HttpRequest request, std::function<void(HttpResponse)> done) override;
  void set_ready(bool ready) override { ready_ = ready; }
  void join_fleet(const Member& member) override { fleet_->join(member); }
  void leave_fleet() override {
    if (fleet_) fleet_->leave();
  }
  Status reload_keys() override;
  Status reload_tls() override { return http_->reload_tls(); }
  void housekeep() override;
  void begin_drain(std::chrono::milliseconds grace) override;
  bool finish_drain(std::chrono::milliseconds timeout) override;
  ServerSnapshot snapshot() const override;

  // Routes (server_*.cpp).
  void chat(const std::shared_ptr<Exchange>& exchange);
  void completions(const std::shared_ptr<Exchange>& exchange);
  void responses(const std::shared_ptr<Exchange>& exchange);
  void messages(const std::shared_ptr<Exchange>& exchange);
  void count_tokens(const std::shared_ptr<Exchange>& exchange);
  void score(const std::shared_ptr<Exchange>& exchange);
  void embeddings(const std::shared_ptr<Exchange>& exchange);
  void tokenize(const std::shared_ptr<Exchange>& exchange);
  void detokenize(const std::shared_ptr<Exchange>& exchange);
  void models(const std::shared_ptr<Exchange>& exchange);
  void model(const std::shared_ptr<Exchange>& exchange);
  void vllm_load(const std::shared_ptr<Exchange>& exchange);
  void vllm_unload(const std::shared_ptr<Exchange>& exchange);
  void list_adapters(const std::shared_ptr<Exchange>& exchange);
  void post_adapter(const std::shared_ptr<Exchange>& exchange);
  void get_adapter(const std::shared_ptr<Exchange>& exchange);
  void patch_adapter(const std::shared_ptr<Exchange>& exchange);
  void delete_adapter(const std::shared_ptr<Exchange>& exchange);
  void administrate(const std::shared_ptr<Exchange>& exchange);  // keys and tenants
  void usage(const std::shared_ptr<Exchange>& exchange);
  void status(const std::shared_ptr<Exchange>& exchange);
  void metrics(const std::shared_ptr<Exchange>& exchange);
  void fleet_state(const std::shared_ptr<Exchange>& exchange);
  void fleet_blob(const std::shared_ptr<Exchange>& exchange);
  void fleet_prefetch(const std::shared_ptr<Exchange>& exchange);
  void health(const std::shared_ptr<Exchange>& exchange);
  void ready(const std::shared_ptr<Exchange>& exchange);
  void live(const std::shared_ptr<Exchange>& exchange);
  void version(const std::shared_ptr<Exchange>& exchange);
  void openapi(const std::shared_ptr<Exchange>& exchange);
  void console(const std::shared_ptr<Exchange>& exchange);

  // For the routes.
  const ServerOptions& options() const { return options_; }
  const TextModel& text() const { return service_->text(); }
  const ApiDefaults& api_defaults() const { return defaults_; }  // what no model changes
  // Of the model that a request names: the adapter's text side, or the base's.
  const TextSide& side_of(const AdapterLease& adapter) const {
    return adapter && adapter->text ? *adapter->text : text().base();
  }
  ApiDefaults api_defaults(const TextSide& side) const;
  // Any thread: fields of a request that had no meaning here.
  void note_ignored(const std::vector<std::string>& fields, const std::string& id);
  TenantLimiter& limiter() { return limiter_; }
  UsageLedger& ledger() { return usage_; }
  GrammarCache* grammars() { return grammars_.get(); }
  Metrics& measures() { return *metrics_; }
  HttpServer& http() { return *http_; }
  // Runs on a worker, unless the client has left by then; answers itself when the task cannot be taken.
  void work(const std::shared_ptr<Exchange>& exchange, std::function<void()> task);
  // Runs on a thread for what is long to write, answers and lists, which waits for no request that is still to be read;
  // `refuse` (else the exchange's) on any thread when it is not taken or waited too long. Unless the client has left by
  // then.
  void format(const std::shared_ptr<Exchange>& exchange, std::function<void()> task,
              std::function<void(const ApiError&)> refuse = {});
  // Compiles on a thread of its own, unless it is cached, then runs `next` on a worker. From a worker.
  void compile(const std::shared_ptr<Exchange>& exchange, const GrammarSpec& spec,
               std::shared_ptr<const TokenVocabulary> vocabulary,
               std::function<void(Result<std::shared_ptr<const Grammar>>)> next);
  // For what changes stored state: runs on the state thread, whose answer may take as long as the file is held by
  // somebody. Answers 503 itself when its turn does not come.
  void change(const std::shared_ptr<Exchange>& exchange, std::function<void()> task);
  // One line for a change that somebody asked for: who, what, and whether it is in effect.
  void audit(const Exchange& exchange, const char* action, std::string_view target, const Status& outcome);
  Status check_owner(const Exchange& exchange, const std::string& name) const;
  // A load, or a publication in the fleet.
  void load_adapter(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done);
  // Runs `then` for what is this server's own at once; else after it was taken out of the fleet.
  void take_out_of_fleet(const std::shared_ptr<Exchange>& exchange, const std::string& target,
                         std::function<void(const Status& fleet, bool was_fleets)> then);
  void unload_and_answer(const std::shared_ptr<Exchange>& exchange, const std::string& name, bool wait,
                         bool was_fleets);
  void adapter_load_ended(const Exchange& exchange, std::string_view name, const Result<AdapterLease>& loaded);
  bool aborting() const { return aborting_; }
  // Runs `task` with the model that was asked for, now or on a worker once it is loaded; answers errors itself. From a
  // worker.
  using ModelTask = std::function<void(AdapterRegistry::Resolved)>;
  void with_model(const std::shared_ptr<Exchange>& exchange, const std::string& model, ModelTask task,
                  std::vector<AdapterLease> held = {});
  int64_t started_at() const;                                                          // Unix seconds
  static std::string adapter_json(const Exchange& exchange, AdapterSnapshot adapter);  // as who asks may see it
  void count_stream(int change) { open_streams_ += change; }

 private:
  friend struct Exchange;
  explicit ServerImpl(const ServerOptions& options);
  Status open_listeners();
  HttpResponse refuse(const HttpRequest& head, const Route* route, const ApiError& error, std::string_view tenant,
                      std::string_view key, const std::string& id);
  std::optional<HttpResponse> filter(HttpRequest& head);
  std::optional<HttpResponse> judge(HttpRequest& head);
  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply);
  HiddenRoutes hidden_from(const HttpRequest& request) const;
  const Route* find_route(const HttpRequest& request, std::string* parameter, bool* path_exists) const;
  std::string allowed_methods(const HttpRequest& head) const;
  ApiResult<Principal> authorize(const HttpRequest& request, const Route& route) const;
  ApiResult<Principal> passed_on(const HttpRequest& request, const Route& route, std::string_view passed) const;
  bool is_from_router(const HttpRequest& request) const;
  std::optional<ApiError> shed(const Tenant& tenant);
  std::optional<ApiError> enter(HttpRequest& head, const Route& route, const std::shared_ptr<const Tenant>& tenant);
  void deliver(int shard, std::vector<StreamEvent> events);  // of a step; engine thread
  void post_work(WorkQueue& queue, std::atomic<WorkQueue::Id>& id, const std::shared_ptr<Exchange>& exchange,
                 bool heavy, std::function<void()> task, std::function<void(const ApiError&)> refuse);
  AccountStore* accounts() const { return options_.accounts ? options_.accounts.get() : store_.get(); }  // or null
  std::shared_ptr<const KeyRing> keys() const { return access_->ring(); }
  ReplicaReport report();
  Status apply_access(Result<std::vector<AccessChange>> changes);  // state thread
  void watch_access();                                             // state thread, about once a second
  bool is_admin_listener(int listener) const {
    return options_.admin && listener == static_cast<int>(options_.listen.size());
  }

  const ServerOptions options_;
  BrowserGuard browser_;
  TenantLimiter limiter_;  // outlives whatever holds a place
  std::unique_ptr<Log> log_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<EngineService> service_;
  std::unique_ptr<FleetAdapters> fleet_;  // or null
  std::unique_ptr<AdapterRegistry> registry_;
  std::unique_ptr<GrammarCache> grammars_;
  std::unique_ptr<WorkQueue> workers_, compilers_, formatters_;
  std::unique_ptr<FleetFeed> feed_;
  // Of reports; the feed's thread only.
  std::string replica_id_, numerics_;
  Clock::time_point next_probe_{};
  ApiDefaults defaults_;
  UsageLedger usage_;
  HeapTrimmer heap_;
  std::mutex ignored_mutex_;
  std::set<std::string> ignored_;  // that the log has named
  std::string access_failure_;     // that was logged last; state thread
  std::string own_change_;         // key or tenant that this server itself just changed; state thread
  // Draining: /ready says no; refusing: nothing new; aborting: nothing that waits goes on.
  std::atomic<bool> ready_{false}, draining_{false}, refusing_{false}, aborting_{false};
  std::atomic<int64_t> open_streams_{0};
  std::atomic<unsigned> next_asked_{0};  // ask()
  const Clock::time_point started_ = Clock::now();
  std::thread grace_;
  std::unique_ptr<StateThread> state_;
  // Last, so that it ends first, and not by reset(): that forgets the server before its shards have ended, and what
  // they run until then posts to it.
  std::unique_ptr<HttpServer> http_;
};

}  // namespace lk
