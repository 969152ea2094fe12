// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/server.h"

#include <sys/random.h>

#include <algorithm>
#include <ctime>
#include <future>

#include "lk/base/guarded.h"
#include "lk/base/rng.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/net/listener.h"
#include "lk/serve/access/principal_json.h"
#include "lk/serve/http/authorize.h"
#include "lk/serve/http/heap_trimmer.h"
#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

// Keys that are revoked in another process are refused within two of these intervals.
constexpr std::chrono::milliseconds kAccessInterval{1000};
// How long a change may wait for somebody who holds the state file; `lorikeet keys` holds it for milliseconds.
constexpr std::chrono::milliseconds kStatePatience{2000};
constexpr const char* kNotStored =
    "the change could not be stored and is not in effect; the server's log says why, try again later";
// A task's closures and the head of its request, some kilobytes; the bodies are bounded by their bytes.
constexpr int64_t kMaxWaitingWork = 4096;
// Held for requests at a time: bodies until they are read, log-probabilities until their answer is written. Eight of
// the largest bodies, or more smaller ones. With twice that for a moment (SharedBound) this is what a server may need
// beside its memory plan.
constexpr int64_t kLeastHeldBytes = int64_t{64} << 20;
int64_t max_held_bytes(const ServerOptions& options) {
  return std::max(kLeastHeldBytes, 8 * options.limits.max_body_bytes);
}
// Threads for what is long to write: one long answer holds up nobody. They stand back for the engine's threads, too.
constexpr int kFormatters = 2;
constexpr int kFormatterNice = 8;
// Events that a shard shows before it looks at the time.
constexpr size_t kEventsAtOnce = 8;
// What the workers do comes before the model, but a step that waits for a core holds up every stream: they stand back a
// little. A short request still has its turn at once; long bodies no longer take the cores from the steps.
constexpr int kWorkerNice = 5;
// A body that takes more than some milliseconds to read. Of one tenant, not all workers read such at the same time.
constexpr size_t kHeavyBody = 64 << 10;
// Requests about adapters, keys and tenants have some names in them.
constexpr int64_t kMaxAdminBody = 64 << 10;
// Grammars: one thread that stands back for everybody else. A tenant may use it for a sixth of the time; a schema
// takes milliseconds.
constexpr int kCompilerNice = 10;
constexpr double kCompileSecondsPerMinute = 10;

// What a request holds while its body is received.
class Entry final : public HttpAdmission {
 public:
  explicit Entry(int64_t max_body) : max_body_(max_body) {}
  std::optional<ApiError> hold(int64_t bytes) {
    if (bytes > max_body_)
      return ApiError{.status = 413,
                      .message = fmt::format("the body is larger than {} bytes", max_body_),
                      .code = "request_too_large"};
    if (!place.hold(bytes)) return overloaded(1, "the server holds too many large requests, try again later");
    return std::nullopt;
  }
  std::optional<HttpResponse> on_body(int64_t bytes) override {
    if (bytes <= declared) return std::nullopt;
    if (const std::optional<ApiError> error = hold(bytes)) return error_response(*error);
    return std::nullopt;
  }
  TenantLimiter::Place place;
  int64_t declared = 0;  // bytes that are held already

 private:
  const int64_t max_body_;
};

}  // namespace

// Two of the longest answers may wait for the readers of one tenant, eight in all.
HttpLimits limits_of(const ServerOptions& options) {
  HttpLimits limits = options.limits;
  limits.max_output_bytes_per_account = 2 * options.max_answer_bytes;
  limits.max_total_output_bytes = 8 * options.max_answer_bytes;
  return limits;
}

namespace {

HttpServerOptions http_options(const ServerOptions& options) {
  HttpServerOptions http{.listen = options.listen,
                         .num_shards = options.io_threads,
                         .limits = limits_of(options),
                         .tls_cert = options.tls_cert,
                         .tls_key = options.tls_key};
  if (options.admin) http.listen.push_back(*options.admin);
  return http;
}

std::string random_id() {
  thread_local Rng rng([] {
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
      seed = static_cast<uint64_t>(Clock::now().time_since_epoch().count());
    return seed;
  }());
  return fmt::format("{:016x}{:016x}", rng.next(), rng.next());
}

std::string request_id(const HttpRequest& head) {
  const std::string_view own = head.header("x-request-id");
  return is_request_id(own) ? std::string(own) : random_id();
}

}  // namespace

std::string account_of(const Tenant& tenant, const HttpRequest& request) {
  return tenant.name.empty() ? "peer " + request.peer_account : tenant.name;
}

// --- Life

Status check_exposure(const ServerOptions& options, bool has_keys) {
  if (has_keys || options.insecure) return Status();
  std::vector<HttpListen> listeners = options.listen;
  if (options.admin) listeners.push_back(*options.admin);
  for (const HttpListen& listener : listeners)
    if (!is_local_address(listener.address))
      return failed_precondition(
          "listening on {} without any API key would let everybody in: create one with `lorikeet keys create`, or say "
          "--insecure",
          listener.address);
  LK_ASSIGN_OR_RETURN(const BrowserGuard browser, BrowserGuard::create(options.allowed_origins));
  if (browser.allows_all())
    return failed_precondition(
        "--allow-origin '*' without any API key would let every web page in: create one with `lorikeet keys create`, "
        "or say --insecure");
  return Status();
}

ServerImpl::ServerImpl(const ServerOptions& options) : options_(options), limiter_(max_held_bytes(options)) {}

Result<std::unique_ptr<Server>> Server::start(const ServerOptions& options, std::unique_ptr<TextEngine> engine,
                                              std::unique_ptr<StateStore> store, std::unique_ptr<Log> log) {
  LK_ASSIGN_OR_RETURN(std::unique_ptr<ServerImpl> server,
                      ServerImpl::create(options, std::move(engine), std::move(store), std::move(log)));
  return std::unique_ptr<Server>(std::move(server));
}

Result<std::unique_ptr<ServerImpl>> ServerImpl::create(const ServerOptions& options, std::unique_ptr<TextEngine> engine,
                                                       std::unique_ptr<StateStore> store, std::unique_ptr<Log> log) {
  std::unique_ptr<ServerImpl> self(new ServerImpl(options));
  self->log_ = std::move(log);
  self->store_ = std::move(store);
  LK_ASSIGN_OR_RETURN(self->access_, AccessControl::create(options.access, self->accounts()));
  LK_ASSIGN_OR_RETURN(self->browser_, BrowserGuard::create(options.allowed_origins));
  LK_RETURN_IF_ERROR(check_exposure(options, !self->access_->ring()->open()));
  if (!self->keys()->open() && !self->keys()->has_usable_key(std::time(nullptr)))
    self->log_->write(LogLevel::kWarning, "no_usable_key", {{"remedy", "lorikeet keys create"}});
  self->metrics_ = Metrics::create({.model_name = options.adapters.base_name, .version = options.version});
  const std::shared_ptr<const TensorStore> checkpoint = engine->engine().weights().checkpoint;
  ServerImpl* raw = self.get();
  if (options.accounts)
    options.accounts->set_log([raw](std::string_view what, std::string_view reason) {
      raw->log_->write(LogLevel::kWarning, "fleet_keys", {{"what", what}, {"reason", reason}});
    });
  if (self->store_) {
    self->store_->set_patience(kStatePatience);
    self->store_->on_failed_write([raw](const Status& reason) {
      raw->metrics_->state_write_failed();
      raw->log_->write(LogLevel::kError, "state_not_written", {{"reason", reason.message()}});
      return unavailable("{}", kNotStored);  // the reason names the server's files
    });
  }
  EngineServiceOptions service_options = options.engine;
  service_options.on_fault = [raw](const Status& reason) {
    raw->log_->write(LogLevel::kError, "exception", {{"thread", "engine"}, {"reason", reason.message()}});
  };
  service_options.on_step = [raw](int64_t tokens, double seconds) { raw->metrics_->step_finished(tokens, seconds); };
  self->service_ = std::make_unique<EngineService>(
      std::move(engine), service_options,
      [raw](int shard, std::vector<StreamEvent> events) { raw->deliver(shard, std::move(events)); });
  const TextModel& text = self->service_->text();
  self->defaults_ = {
      .context = text.context(), .vocab_size = max_own_vocab_size(text.config()), .max_choices = options.max_choices};
  self->defaults_.tool_format = parse_tool_format(options.tool_format).value_or(ToolFormat::kNone);
  self->defaults_.reasoning = parse_reasoning_format(options.reasoning).value_or(ReasoningFormat::kNone);
  if (text.tokenizer())
    self->grammars_ = std::make_unique<GrammarCache>(text.base().vocabulary(), options.max_grammar_bytes);
  AdapterRegistryOptions registry_options = options.adapters;
  registry_options.log = self->log_.get();
  if (options.fleet) {
    LK_ASSIGN_OR_RETURN(self->fleet_, FleetAdapters::open(*options.fleet, self->log_.get()));
    registry_options.supply = self->fleet_.get();
  }
  registry_options.on_load = [raw](double seconds, bool ok) { raw->metrics_->adapter_load(seconds, ok); };
  self->registry_ =
      std::make_unique<AdapterRegistry>(*self->service_, registry_options, checkpoint, self->store_.get());
  if (self->fleet_) self->fleet_->attach(*self->registry_, options.adapters.roots);
  self->state_ = std::make_unique<StateThread>([raw] { raw->watch_access(); }, kAccessInterval);
  const auto max_wait =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.engine.max_wait_seconds));
  self->workers_ = std::make_unique<WorkQueue>(WorkQueue::Options{.num_threads = options.worker_threads,
                                                                  .nice = kWorkerNice,
                                                                  .max_waiting = kMaxWaitingWork,
                                                                  .max_wait = max_wait});
  self->compilers_ =
      std::make_unique<WorkQueue>(WorkQueue::Options{.num_threads = 1,
                                                     .thread_name = "lk-grammar",
                                                     .nice = kCompilerNice,
                                                     .max_waiting = kMaxWaitingWork,
                                                     .max_wait = max_wait,
                                                     .max_seconds_per_minute = kCompileSecondsPerMinute});
  self->formatters_ = std::make_unique<WorkQueue>(WorkQueue::Options{.num_threads = kFormatters,
                                                                     .thread_name = "lk-format",
                                                                     .nice = kFormatterNice,
                                                                     .max_waiting = kMaxWaitingWork,
                                                                     .max_wait = max_wait});
  self->feed_ = std::make_unique<FleetFeed>([raw] { return raw->report(); });
  self->replica_id_ = random_id();
  LK_RETURN_IF_ERROR(self->open_listeners());
  return self;
}

// The events of a step, on the shard: a few with each task, so that a step which ends a thousand requests does not keep
// the shard's other connections waiting. The loop looks at the time between tasks.
void ServerImpl::deliver(int shard, std::vector<StreamEvent> events) {
  const Clock::time_point step_end = events.front().step_end;  // the shard lets go of events as soon as it has them
  const auto batch = std::make_shared<std::vector<StreamEvent>>(std::move(events));
  for (size_t first = 0; first < batch->size(); first += kEventsAtOnce)
    http_->post(shard, [this, batch, first] {
      for (size_t i = first; i < std::min(batch->size(), first + kEventsAtOnce); ++i) {
        StreamEvent& event = (*batch)[i];
        const Status shown = guarded("an event", [&] { event.sink->on_event(event); });
        if (!shown.ok()) log_->write(LogLevel::kError, "exception", {{"thread", "io"}, {"reason", shown.message()}});
        event = {};
      }
    });
  // What they wrote is sent when the last of these tasks returns; this one sees it done.
  http_->post(shard, [this, shard, step_end] {
    http_->post(shard, [this, step_end] {
      metrics_->events_delivered(std::chrono::duration<double>(Clock::now() - step_end).count());
    });
  });
}

Status Server::check(const ServerOptions& options, StateStore* store) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccessControl> access,
                      AccessControl::create(options.access, options.accounts ? options.accounts.get() : store));
  LK_RETURN_IF_ERROR(check_exposure(options, !access->ring()->open()));
  return HttpServer::check(http_options(options));
}

Status ServerImpl::open_listeners() {
  HttpServerOptions http = http_options(options_);
  http.on_turn = [this](const IoTurn& turn) { metrics_->io_turn(turn.seconds, turn.cpu_seconds); };
  LK_ASSIGN_OR_RETURN(http_, HttpServer::open(
                                 http, [this](HttpRequest& head) { return filter(head); },
                                 [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                   handle(std::move(request), std::move(reply));
                                 }));
  http_->accept();
  return Status();
}

// In the order of the arrows: no new requests, no workers, no engine, and only then what they all refer to.
ServerImpl::~ServerImpl() {
  if (grace_.joinable()) grace_.join();
  if (http_) http_->stop_accepting();
  if (feed_) feed_->stop();
  for (WorkQueue* queue : {compilers_.get(), workers_.get(), formatters_.get()})  // the first gives to the second
    if (queue) queue->stop();
  if (state_) state_->stop();
  if (options_.accounts) options_.accounts->set_log({});  // they may outlive this
  if (fleet_) fleet_->stop();
  registry_.reset();
  if (service_) service_->stop();
}

Status ServerImpl::reload_keys() {
  std::promise<Status> promise;
  std::future<Status> done = promise.get_future();
  const bool taken = state_->try_post(
      [&](const Status& turn) { promise.set_value(turn.ok() ? apply_access(access_->reload()) : turn); });
  return taken ? done.get() : unavailable("other changes hold up the state file");
}

// What somebody changed beside this server (`lorikeet keys`, the key file): their lines say which, nobody knows by
// whom.
Status ServerImpl::apply_access(Result<std::vector<AccessChange>> changes) {
  if (!changes.ok()) return changes.status();
  const std::string own = std::exchange(own_change_, "");
  for (const AccessChange& change : *changes)
    if (change.target != own)
      log_->audit({{"action", change.action}, {"target", change.target}, {"outcome", "ok"}, {"by", "state file"}});
  if (changes->empty()) return Status();
  // Tenants that are gone leave no account behind once their last request ended.
  limiter_.retain([ring = keys()](const std::string& tenant) { return ring->knows(tenant); });
  return Status();
}

void ServerImpl::watch_access() {
  Status status;
  if (const Status thrown = guarded("a look at the keys", [&] { status = apply_access(access_->refresh()); });
      !thrown.ok())
    status = thrown;
  if (status.message() == access_failure_) return;
  access_failure_ = status.message();
  if (status.ok())
    log_->write(LogLevel::kInfo, "keys_readable");
  else
    log_->write(LogLevel::kError, "keys_not_readable", {{"reason", status.message()}});
}

void ServerImpl::housekeep() {
  log_->flush();
  (void)heap_.tick();
  registry_->tick();
}

void ServerImpl::begin_drain(std::chrono::milliseconds grace) {
  draining_ = true;
  log_->write(LogLevel::kInfo, "drain", {{"grace_ms", grace.count()}, {"in_flight", open_streams_.load()}});
  grace_ = std::thread([this, grace] {
    std::this_thread::sleep_for(grace);
    refusing_ = true;
    http_->stop_accepting();
  });
}

bool ServerImpl::finish_drain(std::chrono::milliseconds timeout) {
  if (grace_.joinable()) grace_.join();
  feed_->stop();  // the last report says that the replica drains; its streams would not end by themselves
  if (http_->wait_idle(timeout)) return true;
  // What waits will not run; what a worker has in hand is refused when it asks for the engine.
  aborting_ = true;
  for (WorkQueue* queue : {compilers_.get(), workers_.get(), formatters_.get()})
    queue->refuse_waiting(unavailable("the server is shutting down"));
  service_->abort_all(unavailable("the server is shutting down"));
  (void)http_->wait_idle(std::chrono::seconds(5));
  return false;
}

// --- Requests

namespace {

bool is_admin_path(std::string_view path) {
  return std::any_of(routes().begin(), routes().end(),
                     [&](const Route& route) { return route.admin_listener && matches(route, path); });
}

}  // namespace

// Routes that answer on the admin listener only, for a request that came by another.
HiddenRoutes ServerImpl::hidden_from(const HttpRequest& request) const {
  return [elsewhere = options_.admin && !is_admin_listener(request.listener)](const Route& route) {
    return elsewhere && route.admin_listener;
  };
}

const Route* ServerImpl::find_route(const HttpRequest& request, std::string* parameter, bool* path_exists) const {
  return lk::find_route(request.method, request.path, parameter, path_exists, hidden_from(request));
}

ApiResult<Principal> ServerImpl::authorize(const HttpRequest& request, const Route& route) const {
  static const auto nobody = std::make_shared<const Tenant>(Tenant{.name = ""});
  const std::shared_ptr<const KeyRing> ring = keys();
  // The file system says who may open the admin socket.
  if (ring->open())
    if (std::optional<ApiError> foreign = browser_.check(request, options_.insecure)) return std::move(*foreign);
  if (const std::string_view passed = request.header(kPrincipalHeader); !passed.empty())
    return passed_on(request, route, passed);
  if (ring->open() && ring->knows_limits()) return Principal{.tenant = ring->default_tenant(), .scopes = kAllScopes};
  if (ring->open() || (is_admin_listener(request.listener) && request.peer == "unix"))
    return Principal{.tenant = nobody, .scopes = kAllScopes};
  const bool open = route.access == Access::kOpen || (route.access == Access::kMetrics && options_.public_metrics);
  if (open) return Principal{.tenant = nobody, .scopes = 0};
  return authenticate(*ring, request, route.access);
}

// Whom a router let in that judges keys itself. Nobody becomes one who makes keys that way: they are made where they
// are judged.
ApiResult<Principal> ServerImpl::passed_on(const HttpRequest& request, const Route& route,
                                           std::string_view passed) const {
  const auto refused = [](std::string_view why) {
    return ApiError{.status = 403,
                    .message = fmt::format("{} {}", kPrincipalHeader, why),
                    .type = "permission_error",
                    .code = "insufficient_scope"};
  };
  if (!is_from_router(request)) return refused("is for routers that send a key of scope fleet");
  if (route.access == Access::kAdmin) return refused("opens no routes of keys and tenants");
  Result<Principal> principal = parse_principal(passed);
  if (!principal.ok()) return refused("says nobody: " + principal.status().message());
  if (std::optional<ApiError> error = check_scope(*principal, route.access)) return std::move(*error);
  return std::move(principal).value();
}

// A router passes its clients' keys on, or who they are, and brings a key of its own beside it.
bool ServerImpl::is_from_router(const HttpRequest& request) const {
  const std::shared_ptr<const KeyRing> ring = keys();
  if (ring->open()) return true;
  const std::string_view key = request.header(kFleetKeyHeader);
  if (key.empty()) return false;
  const Result<Principal> principal = ring->authenticate(fmt::format("Bearer {}", key), std::time(nullptr));
  return principal.ok() && principal->has(Scope::kFleet);
}

// What can be refused without reading a body.
std::optional<ApiError> ServerImpl::shed(const Tenant& tenant) {
  const EngineService::Admission room = service_->look(service_->account(tenant.name, tenant.weight));
  if (room.status.ok()) return std::nullopt;
  return overloaded(room.retry_after_seconds, room.status.message());
}

// Everything that a request may be refused for before its body is read, and its place.
std::optional<ApiError> ServerImpl::enter(HttpRequest& head, const Route& route,
                                          const std::shared_ptr<const Tenant>& tenant) {
  if (route.access == Access::kInfer) {
    if (refusing_)
      return ApiError{.status = 503,
                      .message = "the server is shutting down",
                      .type = "server_error",
                      .code = "shutting_down",
                      .retry_after_seconds = 5};
    if (!ready_)
      return ApiError{.status = 503,
                      .message = "the server is loading its model and adapters",
                      .type = "server_error",
                      .code = "not_ready",
                      .retry_after_seconds = 2};
  }
  auto admission =
      std::make_shared<Entry>(route.access == Access::kInfer ? options_.limits.max_body_bytes : kMaxAdminBody);
  // An empty bucket keeps nobody from changing adapters, keys or limits.
  // An answer that began at another replica was admitted there.
  const bool goes_on = !head.header(kGoesOnHeader).empty() && is_from_router(head);
  if (goes_on) {
    limiter_.enter_anyway(tenant, admission->place, account_of(*tenant, head));
  } else {
    const TenantLimiter::Decision decision = limiter_.enter(
        tenant, admission->place, Clock::now(), route.access == Access::kInfer ? 1 : 0, account_of(*tenant, head));
    if (!decision.admitted) return rate_limited(decision);
    if (route.cost == Cost::kInference)
      if (std::optional<ApiError> error = shed(*tenant)) return error;
  }
  if (head.content_length > 0)
    if (std::optional<ApiError> error = admission->hold(head.content_length)) return error;
  admission->declared = std::max<int64_t>(head.content_length, 0);
  head.admission = std::move(admission);
  return std::nullopt;
}

// What is thrown here, too, is answered with an id.
std::optional<HttpResponse> ServerImpl::filter(HttpRequest& head) {
  std::optional<HttpResponse> answer;
  const Status status = guarded("a head", [&] { answer = judge(head); });
  if (status.ok()) return answer;
  const std::string id = request_id(head);
  log_->write(LogLevel::kError, "exception", {{"id", id}, {"reason", status.message()}});
  return refuse(head, nullptr, api_error(status, id), "", "", id);
}

std::optional<HttpResponse> ServerImpl::judge(HttpRequest& head) {
  std::string parameter;
  bool path_exists = false;
  const Route* route = find_route(head, &parameter, &path_exists);
  std::optional<ApiError> error;
  std::string tenant, key;
  if (!route && path_exists && browser_.is_preflight(head))
    return HttpResponse{.status = 204, .headers = browser_.preflight_headers(head, allowed_methods(head))};
  if (!route) {
    if (path_exists)
      error = ApiError{
          .status = 405, .message = fmt::format("{} is not allowed here", head.method), .code = "method_not_allowed"};
    else if (options_.admin && !is_admin_listener(head.listener) && is_admin_path(head.path))
      error = ApiError{.status = 404,
                       .message = "this is on the admin listener only (--admin), as is the console that shows it",
                       .code = "admin_listener_only"};
    else
      error = ApiError{.status = 404, .message = "no such endpoint", .code = "not_found"};
  } else {
    ApiResult<Principal> principal = authorize(head, *route);
    if (!principal.ok())
      error = principal.error;
    else
      tenant = principal.value->tenant->name, key = principal.value->key_id;
    const std::string_view type = head.header("content-type");
    if (!error && (head.method == "POST" || head.method == "PATCH") && !type.empty() &&
        !type.starts_with("application/json"))
      error =
          ApiError{.status = 415, .message = "Content-Type must be application/json", .code = "unsupported_media_type"};
    if (!error && route->cost != Cost::kNothing) error = enter(head, *route, principal.value->tenant);
  }
  if (!error) return std::nullopt;
  return refuse(head, route, *error, tenant, key, request_id(head));
}

HttpResponse ServerImpl::refuse(const HttpRequest& head, const Route* route, const ApiError& error,
                                std::string_view tenant, std::string_view key, const std::string& id) {
  metrics_->http_request(route ? route->path : "other", error.status, 0);
  metrics_->request_refused(refusal_reason(error.status), tenant);
  log_->write(level_of_status(error.status), "refused",
              {{"id", id},
               {"method", head.method},
               {"route", route ? route->path : "other"},
               {"status", error.status},
               {"tenant", tenant},
               {"key", key},
               {"peer", head.peer}});
  HttpResponse response = error_response(error, dialect_at(head.path));
  add_request_id(response.headers, id, dialect_at(head.path));
  browser_.add_headers(head, response.headers);
  if (error.status == 405) response.headers.emplace_back("allow", allowed_methods(head));
  return response;
}

std::string ServerImpl::allowed_methods(const HttpRequest& head) const {
  return lk::allowed_methods(head.path, hidden_from(head));
}

void ServerImpl::handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  auto exchange = std::make_shared<Exchange>();
  exchange->server = this;
  bool path_exists = false;
  exchange->route = find_route(request, &exchange->parameter, &path_exists);
  exchange->shard = reply->shard();
  exchange->reply = std::move(reply);
  exchange->id = request_id(request);
  exchange->request = std::move(request);
  exchange->run("a route", [&] {
    // The filter let it pass a moment ago; keys may have changed since.
    ApiResult<Principal> principal = authorize(exchange->request, *exchange->route);
    if (!principal.ok()) return exchange->fail(principal.error);
    exchange->principal = std::move(*principal.value);
    exchange->from_router = is_from_router(exchange->request);
    if (exchange->request.admission) {
      exchange->place = std::move(static_cast<Entry&>(*exchange->request.admission).place);
      exchange->request.admission.reset();
    }
    exchange->reply->on_close([weak = std::weak_ptr<Exchange>(exchange)] {
      if (const auto alive = weak.lock()) alive->leave();
    });
    // Without keys the peer's address is all there is to tell clients apart.
    if (const std::string& tenant = exchange->principal.tenant->name; !tenant.empty())
      exchange->reply->charge("tenant " + tenant);
    (this->*exchange->route->handler)(exchange);
  });
}

// What the operator chose for tool calls holds for the base's templates, and for an adapter's that have no format known
// here; "none" for all.
ApiDefaults ServerImpl::api_defaults(const TextSide& side) const {
  ApiDefaults defaults = defaults_;
  defaults.generation = side.generation;
  const bool chosen = options_.tool_format != "auto";
  if (options_.tool_format != "none" && (!chosen || side.own_templates)) defaults.templates = side.templates;
  // Likewise for thoughts, but that an adapter whose own templates have none does not think.
  const bool off = parse_reasoning_format(options_.reasoning) == ReasoningFormat::kNone;
  if (!off && (options_.reasoning == "auto" || side.own_templates)) defaults.reasoning_templates = side.templates;
  defaults.tokenizer = side.tokenizer.get();
  return defaults;
}

// Once for each name, so that whoever runs the server hears of what its clients ask for in vain. Clients make names up.
void ServerImpl::note_ignored(const std::vector<std::string>& fields, const std::string& id) {
  constexpr size_t kMostNames = 256;
  std::vector<std::string> fresh;
  for (const std::string& field : fields) {
    // "messages[3].cache_control" and the like are one field.
    std::string name;
    bool inside = false;
    for (const char c : field) {
      if (c == '[') inside = true;
      if (!inside) name += c;
      if (c == ']') inside = false;
    }
    metrics_->field_ignored(name);
    const std::lock_guard lock(ignored_mutex_);
    if (ignored_.size() < kMostNames && ignored_.insert(name).second) fresh.push_back(std::move(name));
  }
  if (!fresh.empty())
    log_->write(LogLevel::kInfo, "fields_ignored", {{"id", id}, {"fields", fmt::format("{}", fmt::join(fresh, ", "))}});
}

void ServerImpl::work(const std::shared_ptr<Exchange>& exchange, std::function<void()> task) {
  post_work(*workers_, exchange->work, exchange, exchange->request.body.size() >= kHeavyBody, std::move(task),
            [exchange](const ApiError& error) { exchange->refuse(error); });
}

void ServerImpl::format(const std::shared_ptr<Exchange>& exchange, std::function<void()> task,
                        std::function<void(const ApiError&)> refuse) {
  if (!refuse) refuse = [exchange](const ApiError& error) { exchange->refuse(error); };
  post_work(*formatters_, exchange->format, exchange, true, std::move(task), std::move(refuse));
}

int64_t ServerImpl::started_at() const {
  return std::time(nullptr) - static_cast<int64_t>(std::chrono::duration<double>(Clock::now() - started_).count());
}

void ServerImpl::post_work(WorkQueue& queue, std::atomic<WorkQueue::Id>& id, const std::shared_ptr<Exchange>& exchange,
                           bool heavy, std::function<void()> task, std::function<void(const ApiError&)> refuse) {
  const Tenant& tenant = *exchange->principal.tenant;
  const WorkQueue::Posted posted =
      queue.post({.tenant = account_of(tenant, exchange->request),
                  .weight = tenant.weight,
                  .heavy = heavy,
                  .run =
                      [exchange, task = std::move(task)] {
                        if (exchange->gone) return;
                        if (const Status status = guarded("a worker", task); !status.ok())
                          exchange->post([exchange, status] { exchange->break_down(status); });
                      },
                  .refuse = [exchange, refuse](const Status& status) { refuse(api_error(status, exchange->id)); }});
  id = posted.id;
  if (posted.status.ok()) return;
  ApiError error = api_error(posted.status, exchange->id);
  if (posted.retry_after_seconds > 0) error.retry_after_seconds = posted.retry_after_seconds;
  refuse(error);
}

void ServerImpl::compile(const std::shared_ptr<Exchange>& exchange, const GrammarSpec& spec,
                         std::shared_ptr<const TokenVocabulary> vocabulary,
                         std::function<void(Result<std::shared_ptr<const Grammar>>)> next) {
  if (const auto known = grammars_->find(spec, vocabulary)) return next(*known);
  post_work(
      *compilers_, exchange->compile, exchange, false,
      [this, exchange, spec, vocabulary, next = std::move(next)] {
        const auto go_on = [this, &exchange] {
          compilers_->yield();
          return !exchange->gone && !aborting_;
        };
        Result<std::shared_ptr<const Grammar>> compiled = grammars_->get(spec, go_on, vocabulary);
        work(exchange, [next, compiled = std::move(compiled)] { next(compiled); });
      },
      [exchange](const ApiError& error) { exchange->refuse(error); });
}

void ServerImpl::change(const std::shared_ptr<Exchange>& exchange, std::function<void()> task) {
  const auto refusal = [](std::string message) {
    return ApiError{.status = 503,
                    .message = std::move(message),
                    .type = "server_error",
                    .code = "state_unavailable",
                    .retry_after_seconds = 2};
  };
  const bool taken = state_->try_post([exchange, refusal, task = std::move(task)](const Status& turn) {
    if (!turn.ok()) return exchange->refuse(refusal(turn.message()));
    if (const Status status = guarded("a change", task); !status.ok())
      exchange->post([exchange, status] { exchange->break_down(status); });
  });
  if (!taken) exchange->fail(refusal("other changes hold up the state file; try again later"));
}

void ServerImpl::audit(const Exchange& exchange, const char* action, std::string_view target, const Status& outcome) {
  log_->audit({{"action", action},
               {"target", target},
               {"outcome", outcome.ok() ? "ok" : "failed"},
               {"reason", outcome.message()},
               {"id", exchange.id},
               {"tenant", exchange.principal.tenant ? exchange.principal.tenant->name : ""},
               {"key", exchange.principal.key_id},
               {"peer", exchange.request.peer}});
}

}  // namespace lk
