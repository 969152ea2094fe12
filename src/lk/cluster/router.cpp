// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/router.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <openssl/crypto.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <thread>
#include <unordered_set>

#include "lk/base/json_text.h"
#include "lk/base/rng.h"
#include "lk/base/shared_bound.h"
#include "lk/base/thread_name.h"
#include "lk/base/workshop.h"
#include "lk/cluster/gather.h"
#include "lk/cluster/http_relay.h"
#include "lk/cluster/router_error.h"
#include "lk/net/http_client.h"
#include "lk/net/listener.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kTick = 50ms;        // how often relays look whether their replicas are silent
constexpr auto kReconnect = 200ms;  // to a replica whose stream of reports broke
constexpr auto kListenAgain = 5s;   // to one that is connected and silent
constexpr auto kConnectTimeout = 1000ms;
// Bodies are kept until their answers have ended: somebody else may be asked. Shared between addresses.
constexpr int64_t kMostHeldBytes = int64_t{256} << 20;
constexpr size_t kMostReportBytes = 32 << 20;

// Bytes of bodies, by the address they came from.
struct Bodies {
  std::mutex mutex;
  SharedBound<std::string> bound{kMostHeldBytes};  // guarded by mutex
};

// What one request holds of them, from its head until it ends.
class HeldBody final : public HttpAdmission {
 public:
  HeldBody(std::shared_ptr<Bodies> bodies, std::string address)
      : bodies_(std::move(bodies)), address_(std::move(address)) {}
  ~HeldBody() override {
    std::lock_guard lock(bodies_->mutex);
    bodies_->bound.give_back(address_, bytes_);
  }
  std::optional<HttpResponse> on_body(int64_t bytes) override {
    std::lock_guard lock(bodies_->mutex);
    if (bytes <= bytes_) return std::nullopt;
    if (!bodies_->bound.try_take(address_, 1, bytes - bytes_))
      return router_refusal(503, "the router holds too many large requests", "overloaded");
    bytes_ = bytes;
    return std::nullopt;
  }

 private:
  const std::shared_ptr<Bodies> bodies_;
  const std::string address_;
  int64_t bytes_ = 0;
};

// Whose bytes wait for their reader: the key's, by its public part; without one the address's.
std::string account_of(const HttpRequest& request) {
  std::string_view key = request.header("authorization");
  if (key.empty()) key = request.header("x-api-key");
  const size_t begin = key.find("lk-");
  if (begin == std::string_view::npos || key.size() < begin + 15) return {};
  return "key " + std::string(key.substr(begin, 15));
}

class RouterImpl final : public Router {
 public:
  explicit RouterImpl(const RouterOptions& options) : options_(options) {}

  Status open() {
    LK_ASSIGN_OR_RETURN(fleet_, FleetView::create(options_.fleet));
    LK_ASSIGN_OR_RETURN(client_, HttpClient::create({.num_threads = options_.io_threads,
                                                     .tls_ca = options_.tls_ca,
                                                     .connect_timeout = kConnectTimeout}));
    context_ = std::make_unique<RelayContext>(
        RelayContext{*fleet_, *client_, options_, counters_,
                     [this](int shard, std::function<void()> task) { http_->post(shard, std::move(task)); },
                     [this](std::function<void()> task) {
                       lists_.submit(0, [task = std::move(task)](const std::stop_token&) {
                         run_guarded("a list", task);
                         return Workshop::Finish();
                       });
                     }});
    HttpServerOptions http{.listen = options_.listen,
                           .num_shards = options_.io_threads,
                           .limits = options_.limits,
                           .tls_cert = options_.tls_cert,
                           .tls_key = options_.tls_key};
    relays_.resize(static_cast<size_t>(options_.io_threads));
    LK_ASSIGN_OR_RETURN(http_, HttpServer::start(
                                   http, [this](HttpRequest& head) { return filter(head); },
                                   [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                     handle(std::move(request), std::move(reply));
                                   }));
    for (int i = 0; i < fleet_->size(); ++i) listen_to(i);
    ticker_ = std::thread([this] { tick_until_stopped(); });
    return Status();
  }

  ~RouterImpl() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    stop_.notify_all();
    if (ticker_.joinable()) ticker_.join();
    if (http_) {
      http_->stop_accepting();
      end_relays();
    }
    client_.reset();  // its callbacks post to the server
    http_.reset();
  }

  std::string address(int listener) const override { return http_->address(listener); }
  const FleetView& fleet() const override { return *fleet_; }
  RouterStats stats() const override {
    return {.requests = counters_.requests,
            .streams = counters_.streams,
            .others = fleet_->counts(),
            .mismatches = counters_.mismatches,
            .broken = counters_.broken,
            .refused = counters_.refused};
  }
  bool drain(std::chrono::milliseconds timeout) override {
    http_->stop_accepting();
    return http_->wait_idle(timeout);
  }

 private:
  // Nobody asks a replica for anything after this.
  void end_relays() {
    std::vector<std::future<void>> ends;
    for (int shard = 0; shard < http_->num_shards(); ++shard) {
      const auto ended = std::make_shared<std::promise<void>>();
      ends.push_back(ended->get_future());
      http_->post(shard, [this, shard, ended] {
        closed_ = true;
        auto& relays = relays_[static_cast<size_t>(shard)];
        for (const std::shared_ptr<HttpRelay>& relay : relays) relay->close();
        relays.clear();
        ended->set_value();
      });
    }
    for (std::future<void>& end : ends) end.wait();
  }

  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  // --- What replicas say of themselves.

  void listen_to(int replica) {
    struct Listening {
      ReplicaReport report;
      std::unique_ptr<SseParser> parser;
      int status = 0;
      Status failure;
    };
    auto listening = std::make_shared<Listening>();
    listening->parser = std::make_unique<SseParser>(
        [this, replica, raw = listening.get()](std::string_view json) {
          if (!raw->failure.ok()) return;
          raw->failure = apply_report(json, raw->report);
          if (raw->failure.ok()) raw->failure = fleet_->report(replica, raw->report, Clock::now());
          if (!raw->failure.ok()) listen_again(replica);
        },
        kMostReportBytes);
    ClientRequest request{.method = "GET", .url = fleet_->url(replica) + "/v1/fleet/state"};
    if (!options_.fleet_key.empty()) request.headers.emplace_back("authorization", "Bearer " + options_.fleet_key);
    request.timeout = std::chrono::hours(24 * 365);
    ClientCallbacks callbacks;
    callbacks.on_head = [listening](int status, const HttpHeaders&) { listening->status = status; };
    callbacks.on_data = [listening](std::string_view bytes) {
      if (listening->status == 200 && !listening->parser->push(bytes) && listening->failure.ok())
        listening->failure = data_loss("its report is larger than {} bytes", kMostReportBytes);
    };
    callbacks.on_done = [this, replica, listening](const Status& ended) {
      Status reason = !listening->failure.ok() ? listening->failure : ended;
      if (reason.ok() && listening->status != 200)
        reason = failed_precondition(
            "it answered {} to GET /v1/fleet/state: is it a replica, and is the fleet key one of its keys with scope "
            "fleet?",
            listening->status);
      if (reason.ok()) reason = unavailable("it closed the connection");
      if (reason.code() == StatusCode::kCancelled) reason = unavailable("it said nothing any more");
      on_lost(replica, reason, ended.ok() && listening->status == 200);
    };
    const int64_t exchange = client_->send(std::move(request), std::move(callbacks));
    std::lock_guard lock(mutex_);
    state_exchanges_[replica] = {exchange, Clock::now()};
  }

  // Ends the connection that reports come on; on_lost() makes another.
  void listen_again(int replica) {
    int64_t exchange = 0;
    {
      std::lock_guard lock(mutex_);
      const auto found = state_exchanges_.find(replica);
      if (found == state_exchanges_.end()) return;
      exchange = found->second.first;
      state_exchanges_.erase(found);
    }
    client_->cancel(exchange);
  }

  void on_lost(int replica, const Status& reason, bool was_ended) {
    fleet_->lost(replica, reason, was_ended);
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    if (std::string& known = failures_[replica]; known != reason.message()) {
      known = reason.message();
      log("replica_unreachable", fmt::format("{}: {}", fleet_->url(replica), reason.message()));
    }
    reconnect_.emplace_back(Clock::now() + kReconnect, replica);
  }

  void tick_until_stopped() {
    set_thread_name("lk-route-tick");
    std::unique_lock lock(mutex_);
    while (!stop_.wait_for(lock, kTick, [this] { return stopping_; })) {
      const Clock::time_point now = Clock::now();
      std::vector<int> due, silent;
      std::erase_if(reconnect_, [&](const auto& entry) {
        if (entry.first > now) return false;
        due.push_back(entry.second);
        return true;
      });
      // One that hangs, or whose machine is gone, keeps its connection: a new one tells which, and finds it when it is
      // back.
      for (const auto& [replica, exchange] : state_exchanges_)
        if (fleet_->life(replica, now) == FleetView::Life::kSilent && now - exchange.second > kListenAgain)
          silent.push_back(replica);
      lock.unlock();
      lists_.collect();
      for (const int replica : silent) listen_again(replica);
      for (const int replica : due) listen_to(replica);
      for (int i = 0; i < fleet_->size(); ++i) show_life(i, now);
      for (int shard = 0; shard < http_->num_shards(); ++shard) http_->post(shard, [this, shard] { tick(shard); });
      lock.lock();
    }
  }

  void show_life(int replica, Clock::time_point now) {
    const FleetView::Life life = fleet_->life(replica, now);
    FleetView::Life& known = lives_[replica];
    if (std::exchange(known, life) == life) return;
    log("replica", fmt::format("{} is {}", fleet_->url(replica), FleetView::to_string(life)));
    if (life != FleetView::Life::kReady) return;
    std::lock_guard lock(mutex_);
    failures_.erase(replica);
  }

  void tick(int shard) {
    auto& relays = relays_[static_cast<size_t>(shard)];
    const Clock::time_point now = Clock::now();
    // A relay may end, and others begin, while it ticks.
    const std::vector<std::shared_ptr<HttpRelay>> all(relays.begin(), relays.end());
    for (const std::shared_ptr<HttpRelay>& relay : all) {
      relay->tick(now);
      if (relay->over()) relays.erase(relay);
    }
  }

  // --- Requests.

  // Who is refused before a body is read: whoever is not in form, a page of another site in front of replicas without
  // keys, and who brings no key where keys are needed (replicas judge them). What the router says of its replicas is
  // for those who have the fleet's key.
  std::optional<HttpResponse> filter(HttpRequest& head) {
    if (!head.target.starts_with('/')) return router_refusal(400, "the target must be a path", "invalid_target");
    const std::string_view authorization = head.header("authorization");
    const bool is_api = head.path.starts_with("/v1/") || head.path.ends_with("tokenize");
    if (options_.fleet_key.empty()) {
      const std::string_view host = head.header("host"), origin = head.header("origin");
      if (!options_.insecure && !host.empty() && !is_literal_host(host))
        return router_refusal(403, "without keys the router answers to addresses and localhost only", "foreign_host");
      if (!origin.empty() && origin.substr(std::min(origin.size(), origin.find("://") + 3)) != host)
        return router_refusal(403, "web pages of other origins are refused while there are no keys", "foreign_origin");
    } else if (head.path == "/metrics" || head.path == "/v1/fleet/status") {
      const std::string wanted = "Bearer " + options_.fleet_key;
      if (authorization.size() != wanted.size() ||
          CRYPTO_memcmp(authorization.data(), wanted.data(), wanted.size()) != 0)
        return router_refusal(401, "this is for who has the fleet's key", "invalid_api_key");
    } else if (is_api && authorization.empty() && head.header("x-api-key").empty()) {
      return router_refusal(401, "a valid API key is needed: send \"Authorization: Bearer lk-...\"", "invalid_api_key");
    }
    auto held = std::make_shared<HeldBody>(bodies_, head.peer);
    if (std::optional<HttpResponse> refusal = held->on_body(std::max<int64_t>(head.content_length, 0))) return refusal;
    head.admission = std::move(held);
    return std::nullopt;
  }

  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
    if (const std::string account = account_of(request); !account.empty()) reply->charge(account);
    const std::string& path = request.path;
    if (request.method == "GET" || request.method == "HEAD") {
      if (path == "/health" || path == "/healthz" || path == "/ping" || path == "/live" || path == "/livez")
        return reply->respond({.body = "{\"status\":\"ok\"}"});
      if (path == "/ready" || path == "/readyz") {
        const bool ready = fleet_->any_ready(Clock::now());
        return reply->respond({.status = ready ? 200 : 503, .body = ready ? "{\"ready\":true}" : "{\"ready\":false}"});
      }
      if (path == "/version")
        return reply->respond({.body = json_text(boost::json::object{{"version", options_.version}})});
      if (path == "/v1/fleet/status") return reply->respond({.body = status_json()});
      if (path == "/metrics")
        return reply->respond({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_text()});
      if (path == "/v1/models") return gather_models(*context_, std::move(request), std::move(reply));
      if (path.starts_with("/v1/models/")) return relay(std::move(request), std::move(reply));
    }
    static constexpr std::string_view kForwarded[] = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings",
                                                      "/tokenize", "/detokenize"};
    if (request.method == "POST" && std::ranges::find(kForwarded, path) != std::end(kForwarded))
      return relay(std::move(request), std::move(reply));
    const bool changes = path == "/v1/load_lora_adapter" || path == "/v1/unload_lora_adapter" ||
                         path == "/v1/adapters" || path.starts_with("/v1/adapters/");
    if (changes && request.method != "GET") return broadcast(*context_, std::move(request), std::move(reply));
    reply->respond(
        router_refusal(404, "the router has no such endpoint; ask a replica for what is its own", "not_found"));
  }

  void relay(HttpRequest request, std::shared_ptr<HttpReply> reply) {
    const auto shard = static_cast<size_t>(reply->shard());
    if (closed_) return reply->respond(router_refusal(503, "the router is shutting down", "shutting_down"));
    std::string id(request.header("x-request-id"));
    if (!is_request_id(id)) {
      const uint64_t number = next_id_.fetch_add(2);
      id = fmt::format("{:016x}{:016x}", random_bits(start_, number), random_bits(start_, number + 1));
    }
    auto relay = std::make_shared<HttpRelay>(*context_, std::move(request), std::move(reply), std::move(id));
    relays_[shard].insert(relay);
    relay->start();
    if (relay->over()) relays_[shard].erase(relay);
  }

  std::string status_json() const {
    boost::json::array replicas;
    for (const FleetView::Shown& shown : fleet_->show(Clock::now())) {
      const ReplicaReport& report = *shown.report;
      replicas.push_back({{"url", shown.url},
                          {"state", FleetView::to_string(shown.life)},
                          {"reason", shown.failure},
                          {"id", report.id},
                          {"model", report.model},
                          {"version", report.version},
                          {"numerics", report.numerics},
                          {"running", report.running},
                          {"waiting", report.waiting},
                          {"routed", shown.own_requests},
                          {"pages", report.pages},
                          {"pages_free", report.pages_free},
                          {"adapters", report.adapters.size()},
                          {"step_seconds", shown.step_seconds},
                          {"tokens_per_second", shown.tokens_per_second}});
    }
    const RouterStats s = stats();
    return json_text(boost::json::object{{"object", "fleet"},
                                         {"policy", options_.fleet.policy},
                                         {"replicas", std::move(replicas)},
                                         {"requests", s.requests},
                                         {"streams", s.streams},
                                         {"continued", s.others.continued},
                                         {"hedged", s.others.hedged},
                                         {"moved", s.others.moved},
                                         {"retried", s.others.retried},
                                         {"inexact", s.others.inexact},
                                         {"mismatches", s.mismatches},
                                         {"broken", s.broken},
                                         {"refused", s.refused}});
  }

  std::string metrics_text() const {
    std::string out;
    const auto counter = [&](std::string_view name, std::string_view help, int64_t value) {
      out += fmt::format("# HELP lorikeet_route_{0} {1}\n# TYPE lorikeet_route_{0} counter\nlorikeet_route_{0} {2}\n",
                         name, help, value);
    };
    const RouterStats s = stats();
    counter("requests_total", "Requests that were passed on.", s.requests);
    counter("streams_total", "Of these, streamed answers.", s.streams);
    counter("continued_total", "Answers that another replica went on with after theirs was lost.", s.others.continued);
    counter("hedged_total", "Answers that another replica was asked to go on with because theirs was silent.",
            s.others.hedged);
    counter("moved_total", "Answers that were moved away from a replica that drains.", s.others.moved);
    counter("retried_total", "Requests sent to another replica before anything was shown.", s.others.retried);
    counter("inexact_total", "Continuations by a replica of other numerics.", s.others.inexact);
    counter("mismatches_total", "Two replicas gave different tokens for one place.", s.mismatches);
    counter("broken_total", "Answers that nobody could finish.", s.broken);
    counter("refused_total", "Requests that nobody was there to answer.", s.refused);
    out +=
        "# HELP lorikeet_route_replica_up Whether a replica takes requests.\n# TYPE lorikeet_route_replica_up gauge\n";
    const std::vector<FleetView::Shown> replicas = fleet_->show(Clock::now());
    for (const FleetView::Shown& shown : replicas)
      out += fmt::format("lorikeet_route_replica_up{{replica=\"{}\"}} {}\n", shown.url,
                         shown.life == FleetView::Life::kReady ? 1 : 0);
    out +=
        "# HELP lorikeet_route_replica_requests Requests of this router there.\n"
        "# TYPE lorikeet_route_replica_requests gauge\n";
    for (const FleetView::Shown& shown : replicas)
      out += fmt::format("lorikeet_route_replica_requests{{replica=\"{}\"}} {}\n", shown.url, shown.own_requests);
    return out;
  }

  const RouterOptions options_;
  RouterCounters counters_;
  std::unique_ptr<FleetView> fleet_;
  std::unique_ptr<HttpClient> client_;
  std::unique_ptr<RelayContext> context_;
  std::unique_ptr<HttpServer> http_;
  std::vector<std::unordered_set<std::shared_ptr<HttpRelay>>> relays_;  // by shard, used there only
  const std::shared_ptr<Bodies> bodies_ = std::make_shared<Bodies>();
  std::atomic<bool> closed_{false};
  const uint64_t start_ = static_cast<uint64_t>(Clock::now().time_since_epoch().count());
  std::atomic<uint64_t> next_id_{1};

  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;                                                           // guarded by mutex_, like all below
  std::vector<std::pair<Clock::time_point, int>> reconnect_;                        // replicas, and when
  std::unordered_map<int, std::pair<int64_t, Clock::time_point>> state_exchanges_;  // by replica: since when
  std::unordered_map<int, std::string> failures_;                                   // that were logged last
  std::unordered_map<int, FleetView::Life> lives_;                                  // the ticker's only
  std::thread ticker_;
  Workshop lists_{{{.name = "lk-route-lists"}}};  // last: its jobs use the others
};

}  // namespace

Result<std::unique_ptr<Router>> Router::start(const RouterOptions& options) {
  auto router = std::make_unique<RouterImpl>(options);
  LK_RETURN_IF_ERROR(router->open());
  return Result<std::unique_ptr<Router>>(std::move(router));
}

}  // namespace lk
