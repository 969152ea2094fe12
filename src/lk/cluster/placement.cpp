// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "lk/cluster/picker.h"

namespace lk {
namespace {

constexpr double kSlack = 0.15;  // that an old home may have above its replica's part

struct Room {
  double work = 0, bytes = 0;
};

}  // namespace

bool Placement::is_home(std::string_view adapter, std::string_view url) const {
  const auto found = homes.find(adapter);
  return found != homes.end() && std::ranges::find(found->second, url) != found->second.end();
}

Placement place(const PlacementProblem& problem, const Placement& before) {
  Placement placement;
  const auto& replicas = problem.replicas;
  if (replicas.empty()) return placement;
  double total = 0, capacity = 0;
  for (const auto& adapter : problem.adapters) total += adapter.work;
  for (const auto& replica : replicas) capacity += replica.capacity;
  if (total <= 0 || capacity <= 0) return placement;
  const double mean_part = total / static_cast<double>(replicas.size());
  const auto part = [&](size_t j) { return total * replicas[j].capacity / capacity; };

  std::vector<size_t> order(problem.adapters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) {
    const auto &one = problem.adapters[a], &other = problem.adapters[b];
    return one.work != other.work ? one.work > other.work : one.name < other.name;
  });
  std::vector<Room> used(replicas.size());
  std::unordered_map<std::string_view, size_t> by_url;
  for (size_t j = 0; j < replicas.size(); ++j) by_url[replicas[j].url] = j;
  for (const size_t a : order) {
    const PlacementProblem::Adapter& adapter = problem.adapters[a];
    if (adapter.work <= 0) break;
    const auto count = std::min(replicas.size(), static_cast<size_t>(std::ceil(adapter.work / mean_part - 1e-9)));
    const double share = adapter.work / static_cast<double>(std::max<size_t>(1, count));
    const auto filled = [&](size_t j) { return (used[j].work + share) / part(j); };
    const auto holds = [&](size_t j) {
      return replicas[j].capacity > 0 && used[j].bytes + adapter.bytes <= replicas[j].memory;
    };
    // While they are not too full, old homes; then as routers order them that have no plan; else the emptiest.
    std::vector<size_t> rooms;
    const size_t wanted = std::max<size_t>(1, count);
    if (const auto old = before.homes.find(adapter.name); old != before.homes.end())
      for (const std::string& url : old->second)
        if (const auto j = by_url.find(url);
            j != by_url.end() && rooms.size() < wanted && holds(j->second) && filled(j->second) <= 1 + kSlack)
          rooms.push_back(j->second);
    if (rooms.size() < wanted) {
      std::vector<std::tuple<bool, double, size_t>> others;  // the first ones first
      for (size_t j = 0; j < replicas.size(); ++j) {
        if (!holds(j) || std::ranges::count(rooms, j) > 0) continue;
        const double fill = filled(j);
        const bool is_full = fill > 1 + kSlack;
        others.emplace_back(is_full,
                            is_full ? fill : -static_cast<double>(rendezvous_weight(adapter.name, replicas[j].url)), j);
      }
      const size_t more = std::min(wanted - rooms.size(), others.size());
      std::ranges::partial_sort(others, others.begin() + static_cast<std::ptrdiff_t>(more));
      for (size_t k = 0; k < more; ++k) rooms.push_back(std::get<2>(others[k]));
    }
    for (const size_t j : rooms) {
      used[j].work += share;
      used[j].bytes += adapter.bytes;
      placement.homes[adapter.name].push_back(replicas[j].url);
    }
  }
  return placement;
}

}  // namespace lk
