// SPDX-License-Identifier: Apache-2.0
// What a router shows of its fleet: /v1/status (and /v1/fleet/status) as JSON, /metrics as Prometheus text.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lk/cluster/move_log.h"
#include "lk/cluster/route_planner.h"
#include "lk/cluster/router.h"

namespace lk {

struct FleetFigures {
  std::string policy, version;
  std::vector<FleetView::Shown> replicas;
  RouterStats stats;
  std::vector<Move> moves;  // the latest first
  int routers = 1;          // that share the tenants' limits
  RoutePlanner::Figures plan;
  double uptime_seconds = 0;
};

std::string fleet_status(const FleetFigures& figures);
std::string fleet_metrics(const FleetFigures& figures);

}  // namespace lk
