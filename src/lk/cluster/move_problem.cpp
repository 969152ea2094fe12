// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/move_problem.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

namespace lk {
namespace {

// Replicas that are looked at for each request: the emptiest, and those that have its adapter.
constexpr size_t kTargets = 8;
constexpr double kNothing = 1e-9;      // seconds
constexpr size_t kMostExchanges = 64;  // requests of each side that are compared for an exchange
// Where few large requests are to be divided, single steps end far from the best: there two are looked ahead.
constexpr size_t kFewRequests = 24, kFewReplicas = 8;

double mean_of(const std::vector<double>& loads) {
  return std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size());
}

class Search {
 public:
  // `by_page`: what gains most for a page of the replica it goes to is taken first, not what gains most.
  Search(const MoveProblem& problem, bool by_page)
      : problem_(problem), by_page_(by_page), where_(assignment_of(problem)), requests_(problem.replicas.size()) {
    for (const MoveProblem::Replica& replica : problem.replicas) {
      loads_.push_back(replica.fixed);
      free_.push_back(replica.free_pages);
    }
    for (size_t i = 0; i < where_.size(); ++i) {
      const auto at = static_cast<size_t>(where_[i]);
      loads_[at] += problem.replicas[at].slowness * problem.requests[i].work;
      if (problem.requests[i].moves) requests_[at].push_back(static_cast<int>(i));
    }
    mean_ = mean_of(loads_);
    brought_.assign(problem.adapters.size() * loads_.size(), 0);
  }
  // Whether something did not go where it would have been good because pages did not hold it.
  bool was_short_of_pages() const { return was_short_of_pages_; }

  bool is_small() const { return problem_.requests.size() <= kFewRequests && problem_.replicas.size() <= kFewReplicas; }

  // Deals all that may move out anew, the largest first, each to where it ends soonest (Graham's rule for makespans).
  void deal() {
    std::vector<double> loads = loads_;
    std::vector<int> order;
    for (int i = 0; i < std::ssize(where_); ++i)
      if (request(i).moves) {
        order.push_back(i);
        loads[static_cast<size_t>(request(i).at)] -= work_at(i, request(i).at);
      }
    std::ranges::stable_sort(order, std::greater(), [&](int i) { return request(i).work; });
    for (const int i : order) {
      int best = request(i).at;
      double least = std::numeric_limits<double>::infinity();
      for (int j = 0; j < std::ssize(loads); ++j) {
        if (j != request(i).at && (!replica(j).takes || pages_at(i, j) > free_[static_cast<size_t>(j)])) continue;
        const double end = loads[static_cast<size_t>(j)] + work_at(i, j) + price_at(i, j);
        if (end < least) best = j, least = end;
      }
      loads[static_cast<size_t>(best)] += work_at(i, best);
      if (best != request(i).at) put(i, best);
    }
  }

  Assignment run(int most_moves) {
    std::vector<bool> done(loads_.size(), false);
    while (most_moves > 0) {
      int fullest = -1;
      for (int j = 0; j < std::ssize(loads_); ++j)
        if (!done[static_cast<size_t>(j)] && (fullest < 0 || load(j) > load(fullest))) fullest = j;
      if (fullest < 0) break;
      order_targets();
      highest_ = others_highest_ = 0;
      for (int j = 0; j < std::ssize(loads_); ++j) {
        highest_ = std::max(highest_, load(j));
        if (j != fullest) others_highest_ = std::max(others_highest_, load(j));
      }
      if (load(fullest) <= mean_ && load(fullest) < highest_) break;  // nothing is gained by less of it
      if (move_one(fullest) || exchange_one(fullest) || (load(fullest) >= highest_ && move_two(fullest))) {
        --most_moves;
        if (is_small()) done.assign(done.size(), false);
      } else {
        done[static_cast<size_t>(fullest)] = true;
      }
    }
    return where_;
  }

 private:
  size_t place_of(int adapter, int j) const {
    return static_cast<size_t>(adapter) * loads_.size() + static_cast<size_t>(j);
  }
  double& load(int j) { return loads_[static_cast<size_t>(j)]; }
  const MoveProblem::Request& request(int i) const { return problem_.requests[static_cast<size_t>(i)]; }
  const MoveProblem::Replica& replica(int j) const { return problem_.replicas[static_cast<size_t>(j)]; }
  double work_at(int i, int j) const {
    return replica(j).slowness * (request(i).work + (request(i).at == j ? 0 : request(i).price));
  }
  bool needs_load(int i, int j) const {
    const int adapter = request(i).adapter;
    if (adapter < 0 || request(i).at == j || problem_.adapters[static_cast<size_t>(adapter)].on[static_cast<size_t>(j)])
      return false;
    return brought_[place_of(adapter, j)] == 0;
  }
  double pages_at(int i, int j) const {
    if (request(i).at == j) return 0;
    return request(i).pages + (needs_load(i, j) ? problem_.adapters[static_cast<size_t>(request(i).adapter)].pages : 0);
  }
  // What it costs beside work.
  double price_at(int i, int j) const {
    const double price = request(i).at == j ? 0 : replica(j).slowness * request(i).price;
    return price + (needs_load(i, j) ? problem_.adapters[static_cast<size_t>(request(i).adapter)].load_seconds : 0);
  }
  double excess(double load) const { return std::max(0.0, load - mean_); }
  // By how much the cost falls when the fullest one and another have these loads, at this price.
  double gain(int from, double from_after, int to, double to_after, double price) const {
    const double now = loads_[static_cast<size_t>(from)], other = loads_[static_cast<size_t>(to)];
    return highest_ - std::max({others_highest_, from_after, to_after}) +
           (excess(now) + excess(other) - excess(from_after) - excess(to_after) - price) /
               static_cast<double>(loads_.size());
  }

  void order_targets() {
    order_.resize(loads_.size());
    std::iota(order_.begin(), order_.end(), 0);
    const size_t first = std::min(kTargets, order_.size());
    std::ranges::partial_sort(order_, order_.begin() + static_cast<std::ptrdiff_t>(first), {},
                              [&](int j) { return load(j); });
  }

  bool move_one(int from) {
    int best = -1, best_to = -1;
    double best_gain = 0;
    const auto consider = [&](int i, int j) {
      if (j == from || !(replica(j).takes || request(i).at == j) || load(j) >= load(from)) return;
      const double pages = pages_at(i, j);
      if (pages > free_[static_cast<size_t>(j)]) {
        was_short_of_pages_ = true;
        return;
      }
      const double gains =
          gain(from, load(from) - work_at(i, from), j, load(j) + work_at(i, j), price_at(i, j) - price_at(i, from));
      if (gains <= kNothing) return;
      const double worth = by_page_ ? gains / (1 + pages) : gains;
      if (worth > best_gain) best = i, best_to = j, best_gain = worth;
    };
    for (const int i : requests_[static_cast<size_t>(from)]) {
      const size_t first = std::min(kTargets, order_.size());
      for (size_t k = 0; k < first; ++k) consider(i, order_[k]);
      if (request(i).adapter < 0) continue;
      const std::vector<bool>& on = problem_.adapters[static_cast<size_t>(request(i).adapter)].on;
      for (size_t k = first; k < order_.size(); ++k)
        if (on[static_cast<size_t>(order_[k])] && load(order_[k]) < mean_) consider(i, order_[k]);
    }
    if (best < 0) return false;
    put(best, best_to);
    return true;
  }

  // One of the fullest for a smaller one of an emptier replica.
  bool exchange_one(int from) {
    int best = -1, best_other = -1;
    double best_gain = kNothing;
    const auto& here = requests_[static_cast<size_t>(from)];
    const size_t first = std::min(kTargets, order_.size());
    for (size_t t = 0; t < first; ++t) {
      const int j = order_[t];
      if (j == from || !replica(j).takes || !replica(from).takes) continue;
      const auto& there = requests_[static_cast<size_t>(j)];
      for (size_t a = 0; a < std::min(kMostExchanges, here.size()); ++a)
        for (size_t b = 0; b < std::min(kMostExchanges, there.size()); ++b) {
          const int i = here[a], k = there[b];
          if (request(i).work <= request(k).work) continue;
          const double gains =
              gain(from, load(from) - work_at(i, from) + work_at(k, from), j, load(j) - work_at(k, j) + work_at(i, j),
                   price_at(i, j) + price_at(k, from) - price_at(i, from) - price_at(k, j));
          if (gains <= best_gain || pages_at(i, j) > free_[static_cast<size_t>(j)] ||
              pages_at(k, from) > free_[static_cast<size_t>(from)])
            continue;
          best = i, best_other = k, best_gain = gains;
        }
    }
    if (best < 0) return false;
    const int to = where_[static_cast<size_t>(best_other)];
    put(best, to);
    put(best_other, from);
    return true;
  }

  // Any one of the fullest, and then any other, where both together help.
  bool move_two(int from) {
    if (!is_small()) return false;
    const double before = cost();
    const auto targets = [&](int i) {
      std::vector<int> found;
      for (int j = 0; j < std::ssize(loads_); ++j)
        if (j != where_[static_cast<size_t>(i)] && (replica(j).takes || request(i).at == j)) found.push_back(j);
      return found;
    };
    const auto fits = [&](int i, int j) { return pages_at(i, j) <= free_[static_cast<size_t>(j)]; };
    double best = before - kNothing;
    std::pair<int, int> first{-1, -1}, second{-1, -1};
    const std::vector<int> here = requests_[static_cast<size_t>(from)];
    for (const int i : here)
      for (const int j : targets(i)) {
        if (!fits(i, j)) continue;
        put(i, j);
        for (int k = 0; k < std::ssize(where_); ++k) {
          if (k == i || !request(k).moves) continue;
          const int at = where_[static_cast<size_t>(k)];
          for (const int l : targets(k)) {
            if (!fits(k, l)) continue;
            put(k, l);
            if (const double after = cost(); after < best) best = after, first = {i, j}, second = {k, l};
            put(k, at);
          }
        }
        put(i, from);
      }
    if (first.first < 0) return false;
    put(first.first, first.second);
    put(second.first, second.second);
    return true;
  }

  double cost() const {
    double highest = 0, excesses = 0, prices = 0;
    for (const double load : loads_) highest = std::max(highest, load), excesses += excess(load);
    for (int i = 0; i < std::ssize(where_); ++i)
      if (const int j = where_[static_cast<size_t>(i)]; j != request(i).at)
        prices += replica(j).slowness * request(i).price;
    for (size_t a = 0; a < problem_.adapters.size(); ++a)
      for (size_t j = 0; j < loads_.size(); ++j)
        if (brought_[a * loads_.size() + j] > 0 && !problem_.adapters[a].on[j])
          prices += problem_.adapters[a].load_seconds;
    return highest + (excesses + prices) / static_cast<double>(loads_.size());
  }

  void put(int i, int to) {
    const int from = std::exchange(where_[static_cast<size_t>(i)], to);
    load(from) -= work_at(i, from);
    load(to) += work_at(i, to);
    if (request(i).at != to) {
      free_[static_cast<size_t>(to)] -= pages_at(i, to);
      if (request(i).adapter >= 0) ++brought_[place_of(request(i).adapter, to)];
    }
    if (request(i).at != from) {
      if (request(i).adapter >= 0) --brought_[place_of(request(i).adapter, from)];
      free_[static_cast<size_t>(from)] += pages_at(i, from);
    }
    std::erase(requests_[static_cast<size_t>(from)], i);
    requests_[static_cast<size_t>(to)].push_back(i);
  }

  const MoveProblem& problem_;
  const bool by_page_;
  bool was_short_of_pages_ = false;
  Assignment where_;
  std::vector<double> loads_, free_;         // by replica
  double mean_ = 0;                          // of the loads before
  double highest_ = 0, others_highest_ = 0;  // loads now; of all but the fullest that is looked at
  std::vector<std::vector<int>> requests_;   // that may move, by replica
  std::vector<int> brought_;                 // requests that came for an adapter to a replica, by place_of()
  std::vector<int> order_;                   // replicas, the emptiest first
};

}  // namespace

Assignment assignment_of(const MoveProblem& problem) {
  Assignment assignment;
  for (const MoveProblem::Request& request : problem.requests) assignment.push_back(request.at);
  return assignment;
}

Result<double> cost_of(const MoveProblem& problem, const Assignment& assignment) {
  const size_t count = problem.replicas.size();
  std::vector<double> loads(count), pages(count);
  for (size_t j = 0; j < count; ++j) loads[j] = problem.replicas[j].fixed;
  std::vector<double> before = loads;
  for (const MoveProblem::Request& request : problem.requests)
    before[static_cast<size_t>(request.at)] +=
        problem.replicas[static_cast<size_t>(request.at)].slowness * request.work;
  const double mean = mean_of(before);
  double prices = 0;
  std::map<std::pair<int, size_t>, bool> brought;
  for (size_t i = 0; i < problem.requests.size(); ++i) {
    const MoveProblem::Request& request = problem.requests[i];
    const auto j = static_cast<size_t>(assignment[i]);
    const double slowness = problem.replicas[j].slowness;
    loads[j] += slowness * request.work;
    if (assignment[i] == request.at) continue;
    if (!problem.replicas[j].takes || !request.moves)
      return resource_exhausted("request {} may not go to replica {}", i, j);
    loads[j] += slowness * request.price;
    prices += slowness * request.price;
    pages[j] += request.pages;
    if (request.adapter < 0) continue;
    const MoveProblem::Adapter& adapter = problem.adapters[static_cast<size_t>(request.adapter)];
    if (adapter.on[j] || std::exchange(brought[{request.adapter, j}], true)) continue;
    prices += adapter.load_seconds;
    pages[j] += adapter.pages;
  }
  for (size_t j = 0; j < count; ++j)
    if (pages[j] > problem.replicas[j].free_pages + kNothing)
      return resource_exhausted("replica {} has {} free pages, not {}", j, problem.replicas[j].free_pages, pages[j]);
  double excess = 0;
  for (const double load : loads) excess += std::max(0.0, load - mean);
  return *std::ranges::max_element(loads) + (excess + prices) / static_cast<double>(count);
}

Assignment plan_greedy(const MoveProblem& problem, int most_moves) {
  Assignment best;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](Search& search) {
    Assignment found = search.run(most_moves);
    if (const Result<double> cost = cost_of(problem, found); cost.ok() && *cost < least) {
      best = std::move(found);
      least = *cost;
    }
  };
  Search first(problem, false);
  consider(first);
  if (first.was_short_of_pages()) {
    Search by_page(problem, true);
    consider(by_page);
  }
  // Of few large requests the order in which they were taken decides much.
  if (Search dealt(problem, false); dealt.is_small()) {
    dealt.deal();
    consider(dealt);
  }
  return best.empty() ? assignment_of(problem) : best;
}

Assignment plan_relaxed(const MoveProblem& problem) {
  Assignment assignment = assignment_of(problem);
  double loads[2] = {problem.replicas[0].fixed, problem.replicas[1].fixed};
  for (const MoveProblem::Request& request : problem.requests) loads[request.at] += request.work;
  const int from = loads[0] >= loads[1] ? 0 : 1, to = 1 - from;
  if (!problem.replicas[static_cast<size_t>(to)].takes) return assignment;
  // The linear program's optimum: what moves most work for its price goes first, until both are equal; the last one is
  // cut in two.
  std::vector<size_t> order;
  for (size_t i = 0; i < problem.requests.size(); ++i)
    if (problem.requests[i].at == from && problem.requests[i].moves) order.push_back(i);
  std::ranges::stable_sort(order, std::greater(), [&](size_t i) {
    return problem.requests[i].work / (problem.requests[i].work + problem.requests[i].price + kNothing);
  });
  for (const size_t i : order) {
    const MoveProblem::Request& request = problem.requests[i];
    const double gap = loads[from] - loads[to], whole = 2 * request.work + request.price;
    if (gap <= 0 || whole <= 0) break;
    const double part = std::min(1.0, gap / whole);
    if (part < 0.5) break;
    assignment[i] = to;
    loads[from] -= request.work;
    loads[to] += request.work + request.price;
  }
  return assignment;
}

}  // namespace lk
