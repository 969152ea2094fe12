// SPDX-License-Identifier: Apache-2.0
// FleetPlan: what the router that leads has planned, as the registry has it for the others and for who asks why.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/cluster/placement.h"

namespace lk {

// In the registry: who leads, and what that one has planned.
inline constexpr std::string_view kPlanLeader = "leader/planner", kPlan = "plan/current";

struct FleetPlan {
  std::string leader;   // the router's name
  int64_t made_at = 0;  // Unix seconds
  Placement placement;
  std::map<std::string, double, std::less<>> work;  // by adapter: requests in flight, averaged over minutes
};

// One value of a registry: of more adapters than 64 KiB hold, those with the most work.
std::string format_plan(const FleetPlan& plan);
// kUnsupported: of a form that is not known here; kDataLoss: it is none.
Result<FleetPlan> parse_plan(std::string_view value);

}  // namespace lk
