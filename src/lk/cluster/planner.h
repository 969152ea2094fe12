// SPDX-License-Identifier: Apache-2.0
// Planner: where adapters should be, and which running requests should go on elsewhere. Looks at pictures of the fleet
// and says what should be done; others do it. No clock, no socket: the simulator runs the same code.
//
// Moves are for when a replica has more than it can run at once while others have room: requests wait there, or run out
// of pages. Routing by cost seldom lets that happen where reports are fresh; they go wrong when reports are old,
// routers are many or popularity jumps. A move of what runs costs its prompt and answer computed again, one of what
// waits nothing.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/cluster/fleet_picture.h"
#include "lk/cluster/move_problem.h"
#include "lk/cluster/placement.h"

namespace lk {

struct PlannerOptions {
  // "off", "greedy", "ilp" (exact, through CBC), "dlora" (as dLoRA does: every ten seconds one pair of replicas, by
  // what requests take in all, as fractions that are rounded; without placement).
  std::string kind = "greedy";
  std::chrono::milliseconds ilp_limit{200};
};
std::vector<std::string> planner_names();
// Whether such a planner says where adapters are at home, and so may lead.
bool planner_places(std::string_view kind);

class Planner {
 public:
  // kInvalidArgument lists the kinds; kUnsupported: "ilp" in a program without CBC.
  static Result<std::unique_ptr<Planner>> create(const PlannerOptions& options);

  // Between two calls of moves().
  double interval_seconds() const;
  // Requests of this router that should go on elsewhere. With several routers each moves its own, for its part of what
  // is too much.
  std::vector<PlannedMove> moves(const FleetPicture& picture);
  // Why the last plan was what it is, a sentence for each replica that had too much, and how much that was.
  struct Hot {
    std::string url;
    double seconds = 0, mean_seconds = 0;  // of work there, and of all
    int64_t waiting = 0;
    int moved = 0;
  };
  const std::vector<Hot>& last_hot() const { return hot_; }

  // Learns what adapters are asked for; called about once a second.
  void observe(const FleetPicture& picture, double elapsed_seconds);
  // Makes the placement anew of what was learned. While no replica takes anything the old one stays.
  const Placement& place(const FleetPicture& picture);
  const Placement& placement() const { return placement_; }
  // Another planner's, with its work_of() by adapter: the next one is made from it.
  void adopt(const Placement& placement, const std::map<std::string, double, std::less<>>& work);
  double work_of(std::string_view adapter) const;  // requests in flight, averaged over minutes

  // Adapters that replicas should have in memory and have not, the most popular first; none again within half a minute.
  struct Hint {
    int replica = 0;  // its number
    std::vector<std::string> adapters;
  };
  std::vector<Hint> hints(const FleetPicture& picture, const Placement& placement);

 private:
  explicit Planner(const PlannerOptions& options) : options_(options) {}
  struct Demand {
    double work = 0, bytes = 0;
  };
  std::vector<PlannedMove> balance(const FleetPicture& picture);
  std::vector<PlannedMove> dlora(const FleetPicture& picture) const;
  Assignment solve(const MoveProblem& problem) const;

  const PlannerOptions options_;
  std::map<std::string, Demand, std::less<>> demand_;  // by adapter
  Placement placement_;
  double now_ = 0;                                                // seconds that were observed
  std::map<std::pair<std::string, std::string>, double> hinted_;  // URL and adapter: when
  std::vector<Hot> hot_;
  int64_t rounds_ = 0;
  std::map<std::string, int64_t> moved_;  // URLs from which some were moved lately: in which round
};

}  // namespace lk
