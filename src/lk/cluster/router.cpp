// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <future>
#include <random>
#include <thread>
#include <unordered_set>

#include "lk/base/rng.h"
#include "lk/base/thread_name.h"
#include "lk/base/workshop.h"
#include "lk/cluster/fleet_figures.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/cluster/fleet_paths.h"
#include "lk/cluster/gather.h"
#include "lk/cluster/gather_bounds.h"
#include "lk/cluster/http_relay.h"
#include "lk/cluster/route_planner.h"
#include "lk/cluster/router_error.h"
#include "lk/net/http_client.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kTick = 50ms;        // how often relays look whether their replicas are silent
constexpr auto kReconnect = 200ms;  // to a replica whose stream of reports broke
constexpr auto kListenAgain = 5s;   // to one that is connected and silent
constexpr auto kConnectTimeout = 1000ms;
constexpr auto kPrefetchTimeout = 30s;  // reading an adapter from a slow disk, or from another replica
constexpr size_t kMostReportBytes = 32 << 20;

// A name among the routers that listen to the same replicas.
std::string random_name() {
  std::random_device source;
  return fmt::format("{:08x}{:08x}", source(), source());
}

class RouterImpl final : public Router {
 public:
  RouterImpl(const RouterOptions& options, std::unique_ptr<RouterGate> gate)
      : options_(options), gate_(std::move(gate)) {}

  Status open() {
    LK_ASSIGN_OR_RETURN(fleet_, FleetView::create(options_.fleet));
    LK_ASSIGN_OR_RETURN(client_, HttpClient::create({.num_threads = options_.io_threads,
                                                     .tls_ca = options_.tls_ca,
                                                     .connect_timeout = kConnectTimeout}));
    context_ = std::make_unique<RelayContext>(
        RelayContext{*fleet_, *client_, options_, counters_, moves_,
                     [this](int shard, std::function<void()> task) { http_->post(shard, std::move(task)); },
                     [this](const RouterEntry& entry, std::function<void()> run, std::function<void()> refuse) {
                       return gate_->work(entry, std::move(run), std::move(refuse));
                     },
                     bounds_, closed_});
    HttpServerOptions http{.listen = options_.listen,
                           .num_shards = options_.io_threads,
                           .limits = options_.limits,
                           .tls_cert = options_.tls_cert,
                           .tls_key = options_.tls_key};
    relays_.resize(static_cast<size_t>(options_.io_threads));
    LK_ASSIGN_OR_RETURN(http_, HttpServer::open(
                                   http, [this](HttpRequest& head) { return gate_->judge(head); },
                                   [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                     handle(std::move(request), std::move(reply));
                                   }));
    for (const int replica : fleet_->numbers()) listen_to(replica);
    ticker_ = std::thread([this] { tick_until_stopped(); });
    LK_ASSIGN_OR_RETURN(std::unique_ptr<Planner> planner, Planner::create(options_.planner));
    planner_ = std::make_unique<RoutePlanner>(
        *fleet_, std::move(planner), options_.planner.kind, name_,
        RoutePlanner::Host{.move = [this](std::vector<PlannedMove> moves) { move(std::move(moves)); },
                           .prefetch = [this](int replica, const std::string& adapter) { prefetch(replica, adapter); },
                           .publish = options_.publish_plan});
    planner_->start();
    http_->accept();
    return Status();
  }

  ~RouterImpl() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    stop_.notify_all();
    if (planner_) planner_->stop();
    if (ticker_.joinable()) ticker_.join();
    if (http_) {
      http_->stop_accepting();
      end_relays();
      gate_->stop();
    }
    figures_.reset();  // no shard gives it anything after end_relays(); what it has in hand posts to the server
    client_.reset();   // its callbacks post to the server
  }

  void set_members(const std::vector<std::string>& urls) override {
    std::vector<std::string> all = options_.fleet.urls;
    for (const std::string& url : urls)
      if (std::ranges::find(all, url) == all.end()) all.push_back(url);
    for (const int replica : fleet_->set_urls(all)) {
      log("replica", fmt::format("{} is a member", fleet_->url(replica)));
      listen_to(replica);
    }
  }
  const std::string& name() const override { return name_; }
  void set_leads(bool leads) override { planner_->set_leads(leads); }
  void follow_plan(const FleetPlan& plan) override { planner_->follow(plan); }
  std::string address(int listener) const override { return http_->address(listener); }
  const FleetView& fleet() const override { return *fleet_; }
  RouterStats stats() const override {
    return {.requests = counters_.requests,
            .streams = counters_.streams,
            .in_flight = counters_.in_flight,
            .connections = http_->stats().open_connections,
            .others = fleet_->counts(),
            .mismatches = counters_.mismatches,
            .broken = counters_.broken,
            .refused = counters_.refused};
  }
  bool drain(std::chrono::milliseconds timeout) override {
    draining_ = true;
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
    ClientRequest request{.method = "GET", .url = fleet_->url(replica) + std::string(kFleetStatePath)};
    if (!options_.fleet_key.empty()) request.headers.emplace_back("authorization", "Bearer " + options_.fleet_key);
    request.headers.emplace_back(kRouterHeader, name_);
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
            "it answered {} to GET {}: is it a replica, and is the fleet key one of its keys with scope fleet?",
            listening->status, kFleetStatePath);
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
    state_exchanges_.erase(replica);
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
      figures_->collect();
      for (const int replica : silent) listen_again(replica);
      for (const int replica : due) {
        const std::string url = fleet_->url(replica);
        if (fleet_->drop(replica)) {
          lives_.erase(replica);
          {
            std::lock_guard forget(mutex_);
            failures_.erase(replica);
          }
          log("replica", fmt::format("{} left", url));
        } else {
          listen_to(replica);
        }
      }
      for (const int replica : fleet_->numbers()) show_life(replica, now);
      share_limits(now);
      for (int shard = 0; shard < http_->num_shards(); ++shard) http_->post(shard, [this, shard] { tick(shard); });
      lock.lock();
    }
  }

  // --- What is planned.

  // Each relay knows whether a stream is its own, and whether it can move now.
  void move(std::vector<PlannedMove> moves) {
    const auto planned = std::make_shared<const std::vector<PlannedMove>>(std::move(moves));
    for (int shard = 0; shard < http_->num_shards(); ++shard)
      http_->post(shard, [this, shard, planned] {
        if (closed_) return;
        std::unordered_map<StreamId, std::shared_ptr<HttpRelay>> streams;
        for (const std::shared_ptr<HttpRelay>& relay : relays_[static_cast<size_t>(shard)])
          if (const std::optional<StreamId> stream = relay->stream()) streams[*stream] = relay;
        for (const PlannedMove& one : *planned)
          if (const auto found = streams.find(one.stream); found != streams.end())
            found->second->move(one.stream, one.to, Clock::now());
      });
  }

  // What comes of it is seen in the replica's reports.
  void prefetch(int replica, const std::string& adapter) {
    ClientRequest request{.method = "POST", .url = fleet_->url(replica) + std::string(kFleetPrefetchPath) + adapter};
    if (!options_.fleet_key.empty()) request.headers.emplace_back("authorization", "Bearer " + options_.fleet_key);
    request.timeout = kPrefetchTimeout;
    ClientCallbacks callbacks;
    callbacks.on_done = [](const Status&) {};
    client_->send(std::move(request), std::move(callbacks));
  }

  // Tenants' limits are shared with the other routers that replicas have heard of: by number, in the order of their
  // names, which each of them knows.
  void share_limits(Clock::time_point now) {
    std::vector<std::string> names = fleet_->routers(now);
    if (const auto place = std::ranges::lower_bound(names, name_); place == names.end() || *place != name_)
      names.insert(place, name_);
    const auto count = static_cast<int>(names.size());
    const auto rank = static_cast<int>(std::ranges::lower_bound(names, name_) - names.begin());
    if (num_routers_.exchange(count) != count) log("routers", fmt::format("{} share the tenants' limits", count));
    gate_->set_share(rank, count);
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

  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
    const RouterEntry& entry = entry_of(request);
    if (!entry.account.empty()) reply->charge(entry.account);
    if (entry.how == RoutedAs::kOwn) return answer(std::move(request), std::move(reply));
    if (closed_)
      return reply->respond(router_refusal(503, "the router is shutting down", "shutting_down", entry.dialect));
    std::string id(request.header("x-request-id"));
    if (!is_request_id(id)) {
      const uint64_t number = next_id_.fetch_add(2);
      id = fmt::format("{:016x}{:016x}", random_bits(start_, number), random_bits(start_, number + 1));
    }
    if (entry.how == RoutedAs::kOne) return relay(std::move(request), std::move(reply), std::move(id));
    gather(*context_, entry.how, std::move(request), std::move(reply), std::move(id));
  }

  // What the router says of itself and its fleet; the rest is the gate's. What looks at all replicas' adapters is no
  // work for an io thread.
  void answer(HttpRequest request, std::shared_ptr<HttpReply> reply) {
    const std::string& path = request.path;
    const int shard = reply->shard();
    if (path == "/health" || path == "/healthz" || path == "/ping")
      return reply->respond({.content_type = "text/plain", .body = ""});
    if (path == "/live" || path == "/livez") return reply->respond({.body = "{\"live\":true}"});
    if (path == "/ready" || path == "/readyz") {
      const bool ready = !draining_ && fleet_->any_ready(Clock::now());
      return reply->respond({.status = ready ? 200 : 503,
                             .body = fmt::format("{{\"ready\":{},\"draining\":{}}}", ready, draining_.load())});
    }
    const bool is_status = path == "/v1/status" || path == kFleetStatusPath;
    if (is_status || path == "/metrics")
      return look([this, is_status, reply = std::move(reply), shard]() mutable {
        const auto response = std::make_shared<HttpResponse>();
        if (!is_status) response->content_type = "text/plain; version=0.0.4; charset=utf-8";
        response->body = is_status ? fleet_status(figures()) : fleet_metrics(figures()) + gate_->metrics();
        http_->post(shard, [reply = std::move(reply), response] { reply->respond(std::move(*response)); });
      });
    gate_->answer(std::move(request), std::move(reply),
                  [this, shard](std::function<void()> task) { http_->post(shard, std::move(task)); });
  }

  // On a thread that nothing else keeps busy: who watches sees the router also when it has much to do.
  void look(std::function<void()> task) {
    if (closed_) return;  // nobody is answered any more
    figures_->submit(0, [task = std::move(task)](const std::stop_token&) {
      run_guarded("figures", task);
      return Workshop::Finish();
    });
  }

  void relay(HttpRequest request, std::shared_ptr<HttpReply> reply, std::string id) {
    const auto shard = static_cast<size_t>(reply->shard());
    auto relay = std::make_shared<HttpRelay>(*context_, std::move(request), std::move(reply), std::move(id));
    relays_[shard].insert(relay);
    relay->start();
    if (relay->over()) relays_[shard].erase(relay);
  }

  FleetFigures figures() const {
    return {.policy = options_.fleet.policy,
            .version = options_.version,
            .replicas = fleet_->show(Clock::now()),
            .stats = stats(),
            .moves = moves_.latest_first(),
            .routers = num_routers_,
            .plan = planner_->figures(),
            .uptime_seconds = std::chrono::duration<double>(Clock::now() - started_).count()};
  }

  const RouterOptions options_;
  const std::string name_ = random_name();
  const Clock::time_point started_ = Clock::now();
  RouterCounters counters_;
  MoveLog moves_;
  GatherBounds bounds_;
  std::atomic<int> num_routers_{1};
  const std::unique_ptr<RouterGate> gate_;  // outlives the requests that it let in
  std::unique_ptr<FleetView> fleet_;
  std::unique_ptr<HttpClient> client_;
  std::unique_ptr<RelayContext> context_;
  std::vector<std::unordered_set<std::shared_ptr<HttpRelay>>> relays_;  // by shard, used there only
  std::atomic<bool> closed_{false}, draining_{false};
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
  std::unique_ptr<RoutePlanner> planner_;
  std::optional<Workshop> figures_{std::vector<Workshop::Bench>{{.name = "lk-route-look"}}};  // its jobs use the others
  // Last, so that it ends first, and not by reset(): that forgets the server before its shards have ended, and what
  // they run until then posts to it.
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

Result<std::unique_ptr<Router>> Router::start(const RouterOptions& options, std::unique_ptr<RouterGate> gate) {
  auto router = std::make_unique<RouterImpl>(options, std::move(gate));
  LK_RETURN_IF_ERROR(router->open());
  return Result<std::unique_ptr<Router>>(std::move(router));
}

}  // namespace lk
