// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/fleet_simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <queue>
#include <unordered_map>

#include "lk/cluster/planner.h"
#include "lk/cluster/relay.h"
#include "lk/sim/fleet_replica.h"

namespace lk::sim {
namespace {

constexpr Micros kTick = 50'000;      // of relays, as in the router
constexpr Micros kNetwork = 500;      // one way
constexpr Micros kFullFor = 200'000;  // as in the router
constexpr Micros kForever = std::numeric_limits<Micros>::max() / 4;
constexpr double kObserveSeconds = 1;
constexpr int64_t kPlaceEvery = 10;  // observations
constexpr int64_t kMostEvents = 2'000'000'000;

Relay::Time time_of(Micros micros) { return Relay::Time() + std::chrono::hours(1) + std::chrono::microseconds(micros); }

class FleetSimulation;

// One request, as its router sees it.
class SimClient final : public Relay::Host {
 public:
  SimClient(FleetSimulation& fleet, FleetView& view, int32_t request)
      : fleet_(fleet), request_(request), relay_(view, *this, {.streams = true}) {}
  void send(const Relay::Source& source, Relay::Why why) override;
  void cancel(Relay::SourceId source) override;
  void show(std::string_view events, const Relay::Source& source) override;
  void finish() override;
  void give_up() override;
  Relay& relay() { return relay_; }
  int ended = 0;  // times; more than once is a fault
  bool done = false, rejected = false;
  Micros first_token = -1, last_token = -1, end = -1;
  Micros longest_gap = 0;

 private:
  FleetSimulation& fleet_;
  const int32_t request_;
  Relay relay_;
  std::map<Relay::SourceId, std::pair<int, int64_t>> asked_;  // replica, its generation
};

class FleetSimulation {
 public:
  FleetSimulation(const FleetSimOptions& options, const Workload& workload)
      : options_(options), workload_(workload), rng_(options.seed), clients_(workload.requests.size()) {}

  Result<FleetResult> run() {
    for (int r = 0; r < options_.routers; ++r) {
      FleetOptions fleet{.policy = options_.policy, .seed = options_.seed + static_cast<uint64_t>(r)};
      for (int j = 0; j < options_.replicas; ++j) fleet.urls.push_back(fmt::format("http://r{}", j));
      LK_ASSIGN_OR_RETURN(auto view, FleetView::create(fleet));
      views_.push_back(std::move(view));
      LK_ASSIGN_OR_RETURN(auto planner, Planner::create({.kind = options_.planner, .ilp_limit = ilp_limit()}));
      planners_.push_back(std::move(planner));
      at(seconds(planners_.back()->interval_seconds()), [this, r] { move_requests(r); });
    }
    if (options_.placement && (options_.planner == "greedy" || options_.planner == "ilp"))
      at(seconds(kObserveSeconds), [this] { place_adapters(1); });
    nodes_.resize(static_cast<size_t>(options_.replicas));
    for (int j = 0; j < options_.replicas; ++j) {
      start_replica(j);
      report(j, 0);
      // Replicas do not all report at the same moment.
      at(static_cast<Micros>(rng_.uniform() * options_.report_interval_s * 1e6), [this, j] { report_again(j); });
      plan_faults(j);
    }
    for (size_t i = 0; i < workload_.requests.size(); ++i)
      at(workload_.requests[i].arrival, [this, i] { arrive(static_cast<int32_t>(i)); });
    at(kTick, [this] { tick(); });
    for (int64_t count = 0; num_ended_ < static_cast<int64_t>(clients_.size()) && failure_.ok(); ++count) {
      if (count > kMostEvents) return internal_error("the fleet does not come to an end");
      advance();
    }
    LK_RETURN_IF_ERROR(failure_);
    return result();
  }

 private:
  friend class SimClient;
  struct Node {
    std::unique_ptr<FleetReplica> replica;  // null: killed
    int64_t generation = 0;
    Micros hung_until = 0, refuses_until = 0;
    std::vector<Micros> cut_until;                                         // by router
    std::vector<std::deque<std::pair<Micros, FleetReplica::Event>>> sent;  // by router: on its way, and when it arrives
    bool was_replaced = false;
  };
  struct Timed {
    Micros time = 0;
    int64_t order = 0;
    std::function<void()> what;
    bool operator<(const Timed& other) const {
      return time != other.time ? time > other.time : order > other.order;  // the earliest on top
    }
  };

  void at(Micros time, std::function<void()> what) { queue_.push({std::max(time, now_), order_++, std::move(what)}); }
  Node& node(int j) { return nodes_[static_cast<size_t>(j)]; }
  FleetView& view_of(int32_t request) { return *views_[static_cast<size_t>(router_of(request))]; }
  int router_of(int32_t request) const { return request % options_.routers; }
  SimClient& client(int32_t request) { return *clients_[static_cast<size_t>(request)]; }
  void fail(Status status) {
    if (failure_.ok()) failure_ = std::move(status);
  }

  // The next thing in the order of time: an event, or a step of the replica that is furthest behind.
  void advance() {
    int next = -1;
    for (int j = 0; j < options_.replicas; ++j) {
      Node& n = node(j);
      if (!n.replica || !n.replica->has_work()) continue;
      if (n.hung_until > now_) continue;
      n.replica->jump_to(n.hung_until);  // it did nothing until then
      if (next < 0 || n.replica->now() < node(next).replica->now()) next = j;
    }
    const Micros event = queue_.empty() ? kForever : queue_.top().time;
    if (next >= 0 && node(next).replica->now() < event) {
      step(next, event);
      return;
    }
    LK_CHECK(!queue_.empty(), "nothing is left to happen");
    Timed top = queue_.top();
    queue_.pop();
    now_ = top.time;
    top.what();
  }

  void step(int j, Micros until) {
    FleetReplica& replica = *node(j).replica;
    const std::vector<FleetReplica::Event> events = replica.step(until);
    const Micros end = replica.now();
    for (const FleetReplica::Event& event : events) {
      const int router = router_of(event.work.request);
      node(j).sent[static_cast<size_t>(router)].emplace_back(end + kNetwork, event);
      node(j).sent[static_cast<size_t>(router)].back().second.content = content_at(j, event.work.request);
      at(end + kNetwork, [this, j, router] { flush(j, router); });
    }
  }

  // What a replica sent to a router arrives in its order; a cut holds it up.
  void flush(int j, int router) {
    if (const Micros cut = cut_until(j, router); cut > now_) return at(cut, [this, j, router] { flush(j, router); });
    auto& sent = node(j).sent[static_cast<size_t>(router)];
    while (!sent.empty() && sent.front().first <= now_) {
      const FleetReplica::Event event = sent.front().second;
      sent.pop_front();
      receive(event);
    }
  }

  Micros cut_until(int j, int router) { return node(j).cut_until[static_cast<size_t>(router)]; }

  void receive(const FleetReplica::Event& event) {
    SimClient& to = client(event.work.request);
    Relay& relay = to.relay();
    if (event.ended && (event.failed || !event.has_token)) return relay.lost(event.work.source, time_of(now_));
    if (!event.has_token) return relay.heard(event.work.source, time_of(now_));
    AnswerCommit commit{.first = event.index,
                        .tokens = {token_of(event.work.request, event.index, event.content)},
                        .done = event.ended,
                        .digest = digest_of(event.content)};
    const int64_t mismatches = relay.num_mismatches();
    relay.group(event.work.source, "token", commit, time_of(now_));
    if (event.ended && relay.source(event.work.source) != nullptr)
      relay.group(event.work.source, "end", {.end = true}, time_of(now_));
    result_.mismatches += relay.num_mismatches() - mismatches;
    if (relay.num_mismatches() > mismatches && options_.faults.other_weights == 0)
      fail(
          internal_error("request {} got token {} out of turn or twice, in two ways", event.work.request, event.index));
  }

  // Which token it is does not matter, that it is the right one, of these weights, does.
  static int32_t token_of(int32_t request, int32_t index, int content) {
    return static_cast<int32_t>(random_bits(static_cast<uint64_t>(request) * 2 + static_cast<uint64_t>(content),
                                            static_cast<uint64_t>(index)) >>
                                34);
  }
  static std::string digest_of(int content) { return content == 0 ? "d0" : "d1"; }

  // Which weights the adapter of a request has at a replica.
  int content_at(int j, int32_t request) {
    const AdapterId adapter = workload_.requests[static_cast<size_t>(request)].adapter;
    if (adapter == kBaseModel) return 0;
    const auto start = static_cast<uint64_t>(node(j).generation * options_.replicas + j);
    return is_drawn(options_.faults.other_weights, start, static_cast<uint64_t>(adapter) + 1) ? 1 : 0;
  }
  bool is_rejected(int32_t request) const {
    return is_drawn(options_.faults.rejected, static_cast<uint64_t>(request), 0);
  }
  bool is_drawn(double part, uint64_t one, uint64_t other) const {
    return static_cast<double>(random_bits(random_bits(options_.seed, one), other) >> 11) * 0x1p-53 < part;
  }

  void arrive(int32_t request) {
    FleetView& view = view_of(request);
    auto& to = clients_[static_cast<size_t>(request)];
    to = std::make_unique<SimClient>(*this, view, request);
    open_.push_back(request);
    const SimRequest& asked = workload_.requests[static_cast<size_t>(request)];
    const std::string adapter = adapter_name(asked.adapter);
    to->relay().start({.adapter = adapter,
                       .prompt_tokens = static_cast<double>(asked.input),
                       .predicted_output = std::min(view.predicted_output(adapter), double(asked.max_tokens))},
                      time_of(now_));
  }

  void tick() {
    for (size_t i = 0; i < open_.size();) {
      SimClient& to = client(open_[i]);
      if (to.relay().over()) {
        open_[i] = open_.back();
        open_.pop_back();
        continue;
      }
      to.relay().tick(time_of(now_));
      ++i;
    }
    at(now_ + kTick, [this] { tick(); });
  }

  // --- What is planned.

  static Micros seconds(double value) { return static_cast<Micros>(value * 1e6); }
  std::chrono::milliseconds ilp_limit() const {
    return std::chrono::milliseconds(static_cast<int64_t>(options_.ilp_limit_s * 1e3));
  }

  // Each router moves its own requests.
  void move_requests(int router) {
    FleetView& view = *views_[static_cast<size_t>(router)];
    Planner& planner = *planners_[static_cast<size_t>(router)];
    const std::vector<PlannedMove> moves = planner.moves(view.picture(time_of(now_)));
    std::unordered_map<StreamId, int32_t> streams;
    if (!moves.empty())
      for (const int32_t request : open_)
        if (router_of(request) == router)
          if (const std::optional<StreamId> stream = client(request).relay().stream()) streams[*stream] = request;
    for (const PlannedMove& move : moves)
      if (const auto found = streams.find(move.stream); found != streams.end())
        (void)client(found->second).relay().move(move.stream, move.to, time_of(now_));
    at(now_ + seconds(planner.interval_seconds()), [this, router] { move_requests(router); });
  }

  // The first router leads: it says where adapters are at home, to the others and to replicas.
  void place_adapters(int64_t round) {
    Planner& leader = *planners_.front();
    const FleetPicture picture = views_.front()->picture(time_of(now_));
    leader.observe(picture, kObserveSeconds);
    if (round % kPlaceEvery == 0) {
      const auto placement = std::make_shared<const Placement>(leader.place(picture));
      for (auto& view : views_) at(now_ + kNetwork, [&view, placement] { view->set_placement(placement); });
    }
    for (const Planner::Hint& hint : leader.hints(picture, leader.placement()))
      for (const std::string& adapter : hint.adapters) {
        ++result_.hints;
        at(now_ + kNetwork, [this, j = hint.replica, adapter] {
          if (node(j).replica && node(j).hung_until <= now_)
            node(j).replica->prefetch(static_cast<AdapterId>(std::stoi(adapter.substr(1))));
        });
      }
    at(now_ + seconds(kObserveSeconds), [this, round] { place_adapters(round + 1); });
  }

  // --- Replicas.

  void start_replica(int j) {
    Node& n = node(j);
    n.cut_until.resize(static_cast<size_t>(options_.routers));
    n.sent.resize(static_cast<size_t>(options_.routers));
    n.replica = std::make_unique<FleetReplica>(options_.replica, fmt::format("r{}.{}", j, ++n.generation));
    n.replica->advance_to(now_);
    n.hung_until = n.refuses_until = 0;
  }

  void report(int j, Micros age) {
    Node& n = node(j);
    if (!n.replica || n.hung_until > now_) return;
    const ReplicaReport report = n.replica->report();
    for (int r = 0; r < options_.routers; ++r) {
      if (age == 0) {
        (void)views_[static_cast<size_t>(r)]->report(j, report, time_of(now_));
        continue;
      }
      at(now_ + age, [this, j, r, report] {
        if (node(j).replica && cut_until(j, r) <= now_)
          (void)views_[static_cast<size_t>(r)]->report(j, report, time_of(now_));
      });
    }
  }

  void report_again(int j) {
    report(j, kNetwork + static_cast<Micros>(options_.report_age_s * 1e6));
    Node& n = node(j);
    if (n.replica && n.replica->draining && n.replica->is_empty()) replace(j);
    at(now_ + static_cast<Micros>(options_.report_interval_s * 1e6), [this, j] { report_again(j); });
  }

  // Its process is gone, and another one comes.
  void replace(int j) {
    Node& n = node(j);
    const std::vector<FleetReplica::Work> lost = n.replica->live();
    note_end_of(*n.replica);
    n.replica.reset();
    n.was_replaced = true;
    at(now_ + kNetwork, [this, j, lost] {
      for (auto& view : views_) view->lost(j, unavailable("its connection broke"));
      for (const FleetReplica::Work& work : lost) client(work.request).relay().lost(work.source, time_of(now_));
    });
    at(now_ + static_cast<Micros>(options_.faults.repair_s * 1e6), [this, j] { start_replica(j); });
  }

  void note_end_of(const FleetReplica& replica) {
    result_.adapter_loads += replica.num_loads();
    result_.disk_reads += replica.num_disk_reads();
    result_.preemptions += replica.num_preemptions();
  }

  // --- Faults.

  void plan_faults(int j) {
    const FleetFaults& f = options_.faults;
    plan(j, f.kills, [this, j] {
      ++result_.kills;
      replace(j);
    });
    plan(j, f.hangs, [this, j] {
      ++result_.hangs;
      node(j).hung_until = now_ + hang();
    });
    plan(j, f.drains, [this, j] {
      if (std::exchange(node(j).replica->draining, true)) return;
      ++result_.drains;
    });
    plan(j, f.slowdowns, [this, j] {
      ++result_.slowdowns;
      node(j).replica->set_slow(true);
      at(now_ + hang(), [this, j, generation = node(j).generation] {
        if (node(j).replica && node(j).generation == generation) node(j).replica->set_slow(false);
      });
    });
    plan(j, f.refusals, [this, j] {
      ++result_.refusals;
      node(j).refuses_until = now_ + hang();
    });
    plan(j, f.partitions, [this, j] {
      ++result_.partitions;
      node(j).cut_until[rng_.below(static_cast<uint64_t>(options_.routers))] = now_ + hang();
    });
  }
  Micros hang() const { return static_cast<Micros>(options_.faults.hang_s * 1e6); }

  // Again and again, at random times; not while the process is away or hangs.
  void plan(int j, double per_hour, std::function<void()> fault) {
    if (per_hour <= 0) return;
    const double seconds = -std::log(1 - rng_.uniform()) * 3600 / per_hour;
    at(now_ + static_cast<Micros>(seconds * 1e6), [this, j, per_hour, fault] {
      if (node(j).replica && node(j).hung_until <= now_) fault();
      plan(j, per_hour, fault);
    });
  }

  FleetResult result() {
    FleetResult& out = result_;
    std::vector<double> ttft, per_token, gaps, queueing;
    int64_t within = 0;
    Micros last = 0;
    for (size_t i = 0; i < clients_.size(); ++i) {
      const SimClient& one = *clients_[i];
      const SimRequest& asked = workload_.requests[i];
      ++out.requests;
      if (one.rejected) {
        ++out.rejected;
        continue;
      }
      if (!one.done) {
        ++out.given_up;
        continue;
      }
      ++out.done;
      out.output_tokens += asked.output;
      last = std::max(last, one.end);
      const double first = static_cast<double>(one.first_token - asked.arrival) * 1e-6;
      const double all = static_cast<double>(one.end - asked.arrival) * 1e-6;
      ttft.push_back(first);
      per_token.push_back(all / asked.output);
      queueing.push_back(std::max(0.0, first - unloaded_ttft_s(options_.replica, asked)) / asked.output);
      gaps.push_back(static_cast<double>(one.longest_gap) * 1e-6);
      within += first < options_.slo_first_token_s &&
                (asked.output < 2 || (all - first) / (asked.output - 1) < options_.slo_token_s);
    }
    out.slo_attainment = static_cast<double>(within) / static_cast<double>(out.requests);
    out.ttft_s = summarise(ttft);
    out.s_per_token = summarise(per_token);
    out.longest_gap_s = summarise(gaps);
    out.queueing_s_per_token = summarise(queueing);
    out.makespan_s = static_cast<double>(last) * 1e-6;
    double busy = 0, busiest = 0;
    int64_t counted = 0;
    for (const Node& n : nodes_) {
      if (!n.replica) continue;
      note_end_of(*n.replica);
      if (n.was_replaced) continue;
      busy += n.replica->busy_us();
      busiest = std::max(busiest, n.replica->busy_us());
      ++counted;
    }
    if (counted > 0 && busy > 0) out.busy_max_over_mean = busiest * static_cast<double>(counted) / busy;
    for (const auto& view : views_) {
      const FleetView::Counts counts = view->counts();
      out.others.continued += counts.continued;
      out.others.hedged += counts.hedged;
      out.others.moved += counts.moved;
      out.others.planned += counts.planned;
      out.others.retried += counts.retried;
      out.others.inexact += counts.inexact;
    }
    return out;
  }

  const FleetSimOptions& options_;
  const Workload& workload_;
  Rng rng_;
  std::vector<std::unique_ptr<FleetView>> views_;   // by router
  std::vector<std::unique_ptr<Planner>> planners_;  // likewise
  std::vector<Node> nodes_;
  std::vector<std::unique_ptr<SimClient>> clients_;  // by request, once it has arrived
  std::vector<int32_t> open_;                        // that have not ended
  std::priority_queue<Timed> queue_;
  int64_t order_ = 0, num_ended_ = 0;
  Micros now_ = 0;
  FleetResult result_;
  Status failure_;
};

void SimClient::send(const Relay::Source& source, Relay::Why) {
  FleetSimulation::Node& node = fleet_.node(source.replica);
  asked_[source.id] = {source.replica, node.generation};
  const auto so_far = static_cast<int32_t>(relay_.log().num_tokens());
  const SimRequest& asked = fleet_.workload_.requests[static_cast<size_t>(request_)];
  if (source.resumes) fleet_.result_.recomputed_tokens += asked.input + so_far;
  if (fleet_.is_rejected(request_)) {
    fleet_.at(fleet_.now_ + kNetwork, [this, id = source.id] { relay_.whole(id); });
    return;
  }
  const auto refused = [this, id = source.id] {
    fleet_.at(fleet_.now_ + kNetwork, [this, id] { relay_.lost(id, time_of(fleet_.now_)); });
  };
  if (!node.replica) return refused();  // nobody listens there
  if (node.refuses_until > fleet_.now_) {
    fleet_.view_of(request_).refused(source.replica, time_of(fleet_.now_ + kFullFor));
    return refused();
  }
  // A replica goes on with nobody's answer that other weights began.
  if (source.resumes &&
      relay_.log().digest() != FleetSimulation::digest_of(fleet_.content_at(source.replica, request_)))
    return refused();
  // What is cut off or hangs gets it later; here it is there at once and does nothing meanwhile.
  const Status taken = node.replica->submit(asked, {.request = request_, .source = source.id}, so_far, fleet_.now_);
  if (!taken.ok()) refused();
}

void SimClient::cancel(Relay::SourceId source) {
  const auto found = asked_.find(source);
  if (found == asked_.end()) return;
  const auto [replica, generation] = found->second;
  asked_.erase(found);
  FleetSimulation::Node& node = fleet_.node(replica);
  if (node.replica && node.generation == generation) node.replica->cancel({.request = request_, .source = source});
}

void SimClient::show(std::string_view, const Relay::Source&) {
  if (first_token < 0) first_token = fleet_.now_;
  if (last_token >= 0) longest_gap = std::max(longest_gap, fleet_.now_ - last_token);
  last_token = fleet_.now_;
}

void SimClient::finish() {
  end = fleet_.now_;
  ++fleet_.num_ended_;
  if (fleet_.is_rejected(request_)) {
    rejected = true;
    if (++ended > 1 || relay_.begun()) fleet_.fail(internal_error("request {} was refused and answered", request_));
    return;
  }
  done = true;
  const AnswerLog::Choice& answer = relay_.log().choices().at(0);
  const int32_t expected = fleet_.workload_.requests[static_cast<size_t>(request_)].output;
  if (++ended > 1) fleet_.fail(internal_error("request {} ended twice", request_));
  if (static_cast<int64_t>(answer.tokens.size()) != expected)
    fleet_.fail(internal_error("request {} has {} tokens instead of {}", request_, answer.tokens.size(), expected));
  const int content = relay_.log().digest() == FleetSimulation::digest_of(0) ? 0 : 1;
  for (size_t i = 0; i < answer.tokens.size(); ++i)
    if (answer.tokens[i] != FleetSimulation::token_of(request_, static_cast<int32_t>(i), content))
      fleet_.fail(internal_error("request {} has another token {}", request_, i));
}

void SimClient::give_up() {
  ++fleet_.num_ended_;
  if (++ended > 1) fleet_.fail(internal_error("request {} ended twice", request_));
}

}  // namespace

Result<FleetResult> simulate_fleet(const FleetSimOptions& options, const Workload& workload) {
  if (workload.requests.empty()) return invalid_argument("the workload has no requests");
  if (options.replicas < 1 || options.replicas > 10'000 || options.routers < 1 || options.routers > 1'000)
    return invalid_argument("a fleet has 1 to 10000 replicas and 1 to 1000 routers, not {} and {}", options.replicas,
                            options.routers);
  if (!(options.report_interval_s >= 0.01 && options.report_age_s >= 0))
    return invalid_argument("replicas report at most every 0.01 s, and no report comes before it was made");
  if (static_cast<int64_t>(options.replica.adapters.size()) < workload.num_adapters)
    return invalid_argument("the workload asks for {} adapters, there are {}", workload.num_adapters,
                            options.replica.adapters.size());
  LK_RETURN_IF_ERROR(validate(options.replica.model));
  FleetSimulation simulation(options, workload);
  return simulation.run();
}

}  // namespace lk::sim
