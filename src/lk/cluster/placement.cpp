// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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
  for (const size_t a : order) {
    const PlacementProblem::Adapter& adapter = problem.adapters[a];
    if (adapter.work <= 0) break;
    const auto count = std::min(replicas.size(), static_cast<size_t>(std::ceil(adapter.work / mean_part - 1e-9)));
    const double share = adapter.work / static_cast<double>(std::max<size_t>(1, count));
    const auto filled = [&](size_t j) { return (used[j].work + share) / part(j); };
    std::vector<size_t> rooms;
    for (size_t j = 0; j < replicas.size(); ++j)
      if (replicas[j].capacity > 0 && used[j].bytes + adapter.bytes <= replicas[j].memory) rooms.push_back(j);
    // While they are not too full, old homes first, then as routers order them that have no plan; else the emptiest.
    struct Rank {
      int kind = 2;  // 0: was its home; 1: has room
      double fill = 0;
      uint64_t weight = 0;
    };
    std::vector<Rank> ranks(replicas.size());
    for (const size_t j : rooms) {
      const double fill = filled(j);
      if (fill <= 1 + kSlack) ranks[j].kind = before.is_home(adapter.name, replicas[j].url) ? 0 : 1;
      if (ranks[j].kind == 2) ranks[j].fill = fill;
      ranks[j].weight = rendezvous_weight(adapter.name, replicas[j].url);
    }
    std::ranges::stable_sort(rooms, [&](size_t i, size_t j) {
      const Rank &one = ranks[i], &other = ranks[j];
      if (one.kind != other.kind) return one.kind < other.kind;
      return one.kind == 2 ? one.fill < other.fill : one.weight > other.weight;
    });
    rooms.resize(std::min(rooms.size(), std::max<size_t>(1, count)));
    for (const size_t j : rooms) {
      used[j].work += share;
      used[j].bytes += adapter.bytes;
      placement.homes[adapter.name].push_back(replicas[j].url);
    }
  }
  return placement;
}

}  // namespace lk
