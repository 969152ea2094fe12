// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

namespace lk {
namespace {

// A replica has too much when requests wait there and its work is this many times the mean, and this much more.
constexpr double kHotRatio = 1.25, kLeastGapSeconds = 0.5;
constexpr double kUnknownSlots = 32;       // requests that run at once, of a replica that does not say
constexpr double kFewPages = 0.05;         // of the pool: then pages, not places, are what is short
constexpr double kLeastAgeSeconds = 0.25;  // of a request that waits: others may begin at once
constexpr int64_t kRestRounds = 3;         // of a replica, after some were moved away: its reports show it only then
constexpr double kRestSeconds = 10;        // between two moves of one request
constexpr int kMostMovesOfOne = 3;
constexpr double kWorthPrice = 3;       // what is left of one that runs, over what moving it costs
constexpr size_t kMostCandidates = 64;  // of a replica, and of each kind
constexpr int kMostMoves = 128;         // a round
constexpr int kIlpReplicas = 8;         // half of them the fullest
constexpr size_t kIlpRequests = 512;
constexpr double kLoadBytesPerSecond = 2e9, kReadSeconds = 0.1;  // of adapters: host copy to pages; from files
constexpr double kHalfLifeSeconds = 300;                         // of what adapters were asked for
constexpr double kForgotten = 1e-4;                              // requests in flight, on average
constexpr double kHintAgainSeconds = 30;
constexpr double kHintWork = 0.1;  // requests in flight, on average: less popular ones are read when they are asked for
constexpr size_t kMostHints = 2;   // of a replica at a time: its disk has others to serve
constexpr double kDloraRequests = 16, kDloraPages = 0.9, kDloraPrice = 0.05;  // of its program

double slots_of(const ReplicaReport& report) {
  const auto running = static_cast<double>(report.running);
  const bool pages_short = static_cast<double>(report.pages_free) < kFewPages * static_cast<double>(report.pages);
  if (report.waiting > 0 && pages_short && running >= 1) return running;
  return report.max_running > 0 ? static_cast<double>(report.max_running) : std::max(running, kUnknownSlots);
}

bool has_on_device(const ReplicaReport& report, const std::string& adapter) {
  const auto found = report.adapters.find(adapter);
  return found != report.adapters.end() && (found->second.on_device || found->second.in_flight > 0);
}

bool has_in_memory(const ReplicaReport& report, const std::string& adapter) {
  const auto found = report.adapters.find(adapter);
  return found != report.adapters.end() &&
         (found->second.on_device || found->second.on_host || found->second.in_flight > 0);
}

// What a picture says of work, in seconds.
struct Account {
  explicit Account(const FleetPicture& picture) : picture(picture) {
    const size_t count = picture.replicas.size();
    double rate = 0;
    for (const FleetPicture::Replica& replica : picture.replicas) {
      token_seconds.push_back(replica.step_seconds / slots_of(*replica.report));
      mean_token += token_seconds.back() / static_cast<double>(count);
      rate += replica.tokens_per_second / static_cast<double>(count);
    }
    prompt_token = 1 / std::max(rate, 1e-9);
    fixed.assign(count, 0), own.assign(count, 0), requests.assign(count, 0);
    double total = 0;
    for (const FleetPicture::Request& request : picture.requests) {
      const auto at = static_cast<size_t>(request.at);
      total += work(request);
      own[at] += work(request) * slowness(at);
      ++requests[at];
    }
    const double mean_work = picture.requests.empty() ? 0 : total / static_cast<double>(picture.requests.size());
    for (size_t j = 0; j < count; ++j)
      fixed[j] = std::max(0.0, picture.replicas[j].requests - requests[j]) * mean_work * slowness(j);
    // What one that drains has is for the others to do.
    const auto takers = std::ranges::count(picture.replicas, true, &FleetPicture::Replica::takes);
    for (size_t j = 0; j < count; ++j) mean_load += load(j) / static_cast<double>(std::max<ptrdiff_t>(1, takers));
  }
  // Of a replica whose places are all taken, at the mean speed.
  double work(const FleetPicture::Request& request) const {
    return request.left * mean_token + (request.made == 0 ? request.request.prompt_tokens * prompt_token : 0);
  }
  double price(const FleetPicture::Request& request) const {
    return request.made == 0 ? 0 : (request.request.prompt_tokens + request.made) * prompt_token;
  }
  double slowness(size_t j) const { return mean_token > 0 ? token_seconds[j] / mean_token : 1; }
  double load(size_t j) const { return fixed[j] + own[j]; }
  double waiting(size_t j) const {
    const FleetPicture::Replica& replica = picture.replicas[j];
    // What this router has sent and taken away since the report is in `requests`.
    if (replica.report->max_running <= 0) return static_cast<double>(replica.report->waiting);
    return std::max(0.0, replica.requests - slots_of(*replica.report));
  }

  const FleetPicture& picture;
  std::vector<double> token_seconds;         // by replica: for a token of output when all places are taken
  std::vector<double> fixed, own, requests;  // by replica: seconds of others' and own work; own requests
  double mean_token = 0, prompt_token = 0, mean_load = 0;
};

// Of one replica that has too much: what waits, the youngest first, and what runs and is worth it.
std::vector<size_t> candidates_at(const Account& account, size_t j) {
  std::vector<size_t> waiting, running;
  const auto& requests = account.picture.requests;
  for (size_t i = 0; i < requests.size(); ++i) {
    const FleetPicture::Request& request = requests[i];
    if (request.at != static_cast<int>(j) || !request.request.can_move || request.request.moves >= kMostMovesOfOne ||
        request.age_seconds < (request.request.moves > 0 ? kRestSeconds : kLeastAgeSeconds))
      continue;
    if (request.made == 0)
      waiting.push_back(i);
    else if (account.work(request) >= kWorthPrice * account.price(request))
      running.push_back(i);
  }
  const auto keep = [](std::vector<size_t>& all, size_t most, auto&& worth) {
    std::ranges::stable_sort(all, std::greater(), worth);
    all.resize(std::min(all.size(), most));
  };
  // Those that came last are behind the others.
  const auto behind = static_cast<size_t>(std::max(0.0, std::ceil(account.waiting(j))));
  keep(waiting, std::min(behind, kMostCandidates), [&](size_t i) { return -requests[i].age_seconds; });
  keep(running, kMostCandidates,
       [&](size_t i) { return account.work(requests[i]) / (1e-6 + account.price(requests[i])); });
  waiting.insert(waiting.end(), running.begin(), running.end());
  return waiting;
}

struct Named {
  MoveProblem problem;
  std::vector<size_t> replicas;  // of the picture, by the problem's
  std::vector<size_t> requests;  // likewise
};

Named problem_of(const Account& account, const std::vector<size_t>& hot, const std::vector<size_t>& replicas,
                 size_t most_requests) {
  Named named{.problem = {}, .replicas = replicas, .requests = {}};
  MoveProblem& problem = named.problem;
  for (const size_t j : replicas) {
    const FleetPicture::Replica& replica = account.picture.replicas[j];
    problem.replicas.push_back({.fixed = account.load(j),
                                .slowness = account.slowness(j),
                                .free_pages = std::max(0.0, replica.free_pages),
                                .takes = replica.takes && account.waiting(j) <= 0});
  }
  std::unordered_map<std::string, int> adapters;
  for (size_t k = 0; k < replicas.size(); ++k) {
    if (std::ranges::find(hot, replicas[k]) == hot.end()) continue;
    for (const size_t i : candidates_at(account, replicas[k])) {
      if (problem.requests.size() >= most_requests) break;
      const FleetPicture::Request& request = account.picture.requests[i];
      const ReplicaReport& report = *account.picture.replicas[replicas[k]].report;
      int adapter = -1;
      if (!request.request.adapter.empty()) {
        const auto [known, is_new] =
            adapters.try_emplace(request.request.adapter, static_cast<int>(problem.adapters.size()));
        if (is_new) problem.adapters.emplace_back();
        adapter = known->second;
        MoveProblem::Adapter& facts = problem.adapters.back();
        if (is_new) {
          const auto held = report.adapters.find(request.request.adapter);
          const double bytes = held == report.adapters.end() ? 0 : static_cast<double>(held->second.bytes);
          facts.load_seconds = bytes / kLoadBytesPerSecond;
          facts.pages = bytes / static_cast<double>(std::max<int64_t>(1, report.page_bytes));
          for (const size_t j : replicas)
            facts.on.push_back(has_on_device(*account.picture.replicas[j].report, request.request.adapter));
        }
      }
      const double work = account.work(request);
      problem.replicas[k].fixed -= work * problem.replicas[k].slowness;  // it is what may move
      problem.requests.push_back({.at = static_cast<int>(k),
                                  .adapter = adapter,
                                  .work = work,
                                  .price = account.price(request),
                                  .pages = (request.request.prompt_tokens + request.made + request.left) /
                                           static_cast<double>(std::max<int64_t>(1, report.page_tokens))});
      named.requests.push_back(i);
    }
  }
  return named;
}

}  // namespace

std::vector<std::string> planner_names() { return {"off", "greedy", "ilp", "dlora"}; }

bool planner_places(std::string_view kind) { return kind == "greedy" || kind == "ilp"; }

Result<std::unique_ptr<Planner>> Planner::create(const PlannerOptions& options) {
  if (std::ranges::count(planner_names(), options.kind) == 0)
    return invalid_argument("\"{}\" is no planner; there are {}", options.kind, fmt::join(planner_names(), ", "));
  if (options.kind == "ilp" && !has_ilp()) return plan_ilp({}, {}, {}).status();
  return std::unique_ptr<Planner>(new Planner(options));
}

double Planner::interval_seconds() const { return options_.kind == "dlora" ? 10 : 1; }

std::vector<PlannedMove> Planner::moves(const FleetPicture& picture) {
  hot_.clear();
  if (options_.kind == "off" || picture.replicas.size() < 2) return {};
  return options_.kind == "dlora" ? dlora(picture) : balance(picture);
}

Assignment Planner::solve(const MoveProblem& problem) const {
  Assignment greedy = plan_greedy(problem, kMostMoves);
  if (options_.kind != "ilp") return greedy;
  const Result<Assignment> best = plan_ilp(problem, greedy, options_.ilp_limit);
  if (!best.ok()) return greedy;
  const Result<double> cost = cost_of(problem, *best), before = cost_of(problem, greedy);
  return cost.ok() && before.ok() && *cost < *before ? *best : greedy;
}

std::vector<PlannedMove> Planner::balance(const FleetPicture& picture) {
  const Account account(picture);
  ++rounds_;
  std::erase_if(moved_, [&](const auto& entry) { return rounds_ - entry.second >= kRestRounds; });
  std::vector<size_t> order(picture.replicas.size()), hot;
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](size_t j) { return account.load(j); });
  const auto emptiest = std::find_if(order.rbegin(), order.rend(), [&](size_t j) { return picture.replicas[j].takes; });
  if (emptiest == order.rend()) return {};
  const double least = account.load(*emptiest);
  for (const size_t j : order) {
    if (account.waiting(j) <= 0 || account.load(j) <= kHotRatio * account.mean_load ||
        account.load(j) - least < kLeastGapSeconds || account.requests[j] == 0 ||
        moved_.contains(picture.replicas[j].url))
      continue;
    hot.push_back(j);
    hot_.push_back({.url = picture.replicas[j].url,
                    .seconds = account.load(j),
                    .mean_seconds = account.mean_load,
                    .waiting = static_cast<int64_t>(account.waiting(j))});
  }
  if (hot.empty()) return {};
  size_t most_requests = picture.requests.size();
  if (options_.kind == "ilp" && order.size() > kIlpReplicas) {
    hot.resize(std::min<size_t>(hot.size(), kIlpReplicas / 2));
    std::vector<size_t> extremes = hot;
    for (auto j = order.rbegin(); extremes.size() < kIlpReplicas && j != order.rend(); ++j)
      if (std::ranges::find(extremes, *j) == extremes.end()) extremes.push_back(*j);
    order = std::move(extremes);
  }
  if (options_.kind == "ilp") most_requests = kIlpRequests;
  const Named named = problem_of(account, hot, order, most_requests);
  const Assignment plan = solve(named.problem);

  // Other routers see the same replica and move their part.
  std::vector<PlannedMove> moves;
  std::vector<double> moved(picture.replicas.size());
  for (size_t i = 0; i < plan.size(); ++i) {
    const MoveProblem::Request& request = named.problem.requests[i];
    if (plan[i] == request.at) continue;
    const size_t from = named.replicas[static_cast<size_t>(request.at)];
    const double part = account.own[from] / account.load(from) * (account.load(from) - account.mean_load);
    if (moved[from] >= part) continue;
    moved_[picture.replicas[from].url] = rounds_;
    moved[from] += request.work * account.slowness(from);
    moves.push_back({.stream = picture.requests[named.requests[i]].stream,
                     .to = picture.replicas[named.replicas[static_cast<size_t>(plan[i])]].number});
    for (Hot& hot_one : hot_)
      if (hot_one.url == picture.replicas[from].url) ++hot_one.moved;
  }
  return moves;
}

std::vector<PlannedMove> Planner::dlora(const FleetPicture& picture) const {
  const Account account(picture);
  const auto pages_used = [&](size_t j) {
    const ReplicaReport& report = *picture.replicas[j].report;
    return 1 - static_cast<double>(report.pages_free) / static_cast<double>(std::max<int64_t>(1, report.pages));
  };
  // It knows no replicas that drain: they are not there for it.
  std::vector<size_t> takers;
  for (size_t j = 0; j < picture.replicas.size(); ++j)
    if (picture.replicas[j].takes) takers.push_back(j);
  if (takers.size() < 2) return {};
  const auto requests_at = [&](size_t j) { return account.requests[j]; };
  auto [emptiest_at, fullest_at] = std::ranges::minmax_element(takers, {}, requests_at);
  const auto [least_at, most_at] = std::ranges::minmax_element(takers, {}, pages_used);
  double mean = 0;
  for (const size_t j : takers) mean += account.requests[j] / static_cast<double>(takers.size());
  if (pages_used(*most_at) >= kDloraPages && pages_used(*least_at) < kDloraPages)
    fullest_at = most_at, emptiest_at = least_at;
  else if (account.requests[*fullest_at] - mean < kDloraRequests)
    return {};
  const size_t fullest = *fullest_at, emptiest = *emptiest_at;
  if (fullest == emptiest) return {};
  MoveProblem problem{.replicas = {{}, {}}, .requests = {}, .adapters = {}};
  std::vector<size_t> names;
  for (size_t i = 0; i < picture.requests.size(); ++i) {
    const FleetPicture::Request& request = picture.requests[i];
    const auto at = static_cast<size_t>(request.at);
    if (at != fullest && at != emptiest) continue;
    names.push_back(i);
    // What it takes in all, not what is left of it.
    problem.requests.push_back({.at = at == fullest ? 0 : 1,
                                .work = request.request.predicted_output * picture.replicas[at].step_seconds,
                                .price = kDloraPrice,
                                .moves = request.request.can_move});
  }
  const Assignment plan = plan_relaxed(problem);
  std::vector<PlannedMove> moves;
  for (size_t i = 0; i < plan.size(); ++i)
    if (plan[i] != problem.requests[i].at)
      moves.push_back({.stream = picture.requests[names[i]].stream,
                       .to = picture.replicas[plan[i] == 0 ? fullest : emptiest].number});
  return moves;
}

void Planner::observe(const FleetPicture& picture, double elapsed_seconds) {
  now_ += elapsed_seconds;
  const double keeps = std::exp2(-elapsed_seconds / kHalfLifeSeconds);
  for (auto& [name, demand] : demand_) demand.work *= keeps;
  for (const FleetPicture::Replica& replica : picture.replicas)
    for (const auto& [name, adapter] : replica.report->adapters)
      if (adapter.in_flight > 0) {
        Demand& demand = demand_[name];
        demand.work += (1 - keeps) * static_cast<double>(adapter.in_flight);
        demand.bytes = std::max(demand.bytes, static_cast<double>(adapter.bytes));
      }
  std::erase_if(demand_, [](const auto& entry) { return entry.second.work < kForgotten; });
  std::erase_if(hinted_, [&](const auto& entry) { return now_ - entry.second > kHintAgainSeconds; });
}

double Planner::work_of(std::string_view adapter) const {
  const auto found = demand_.find(adapter);
  return found == demand_.end() ? 0 : found->second.work;
}

void Planner::adopt(const Placement& placement, const std::map<std::string, double, std::less<>>& work) {
  placement_ = placement;
  for (const auto& [name, much] : work) demand_.try_emplace(name, Demand{.work = much});
}

const Placement& Planner::place(const FleetPicture& picture) {
  PlacementProblem problem;
  for (const FleetPicture::Replica& replica : picture.replicas) {
    if (!replica.takes) continue;
    PlacementProblem::Replica there{.url = replica.url};
    if (replica.report->host_bytes > 0) there.memory = static_cast<double>(replica.report->host_bytes);
    problem.replicas.push_back(std::move(there));
  }
  if (problem.replicas.empty()) return placement_;
  for (const auto& [name, demand] : demand_)
    problem.adapters.push_back({.name = name, .work = demand.work, .bytes = demand.bytes});
  placement_ = lk::place(problem, placement_);
  return placement_;
}

std::vector<Planner::Hint> Planner::hints(const FleetPicture& picture, const Placement& placement) {
  std::vector<std::pair<double, std::string_view>> wanted;
  for (const auto& [name, homes] : placement.homes)
    if (const double work = work_of(name); work >= kHintWork) wanted.emplace_back(-work, name);
  std::ranges::sort(wanted);
  std::unordered_map<std::string_view, std::pair<size_t, const ReplicaReport*>> by_url;  // position in `hints`
  std::vector<Hint> hints;
  for (const FleetPicture::Replica& replica : picture.replicas) {
    if (!replica.takes) continue;
    by_url[replica.url] = {hints.size(), replica.report.get()};
    hints.push_back({.replica = replica.number, .adapters = {}});
  }
  for (const auto& [negative_work, name] : wanted)
    for (const std::string& url : placement.homes.find(name)->second) {
      const auto replica = by_url.find(url);
      if (replica == by_url.end()) continue;
      const auto& [position, report] = replica->second;
      const std::string adapter(name);
      if (hints[position].adapters.size() >= kMostHints || has_in_memory(*report, adapter) ||
          hinted_.contains({url, adapter}))
        continue;
      hints[position].adapters.push_back(adapter);
      hinted_[{url, adapter}] = now_;
    }
  std::erase_if(hints, [](const Hint& hint) { return hint.adapters.empty(); });
  return hints;
}

}  // namespace lk
