// SPDX-License-Identifier: Apache-2.0
// Router: one address in front of many replicas of one model. It picks a replica for each request, and when that one
// dies, hangs or drains in mid-answer, another one goes on with the answer from the very next token.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "lk/cluster/fleet_plan.h"
#include "lk/cluster/fleet_view.h"
#include "lk/cluster/planner.h"
#include "lk/cluster/router_gate.h"
#include "lk/net/http_server.h"

namespace lk {

struct RouterOptions {
  std::vector<HttpListen> listen;
  int io_threads = 1;
  HttpLimits limits;
  std::string tls_cert, tls_key;
  FleetOptions fleet;
  PlannerOptions planner;
  // The plan of a router that leads, when follow_plan() has not brought it; on a thread that waits for nothing else.
  std::function<void(const FleetPlan&)> publish_plan;
  std::string fleet_key;  // of scope fleet, at every replica; "" = replicas without keys
  // Replicas tell each other of adapters (they have a registry): one is asked to change them, for all.
  bool shared_adapters = false;
  bool exact_only = false;  // rather end an answer than let a replica of other numerics go on with it
  std::string tls_ca;       // PEM file of authorities for https replicas instead of the system's
  std::string version;
  // A line for the operator, on any thread.
  std::function<void(std::string_view event, std::string_view detail)> log;
};

// Totals since the start.
struct RouterStats {
  int64_t requests = 0, streams = 0;
  int64_t in_flight = 0, connections = 0;  // now
  FleetView::Counts others;                // answers for which more than one replica was asked
  int64_t mismatches = 0;                  // two replicas gave different tokens for one place
  int64_t broken = 0;                      // answers that nobody could finish
  int64_t refused = 0;                     // nobody was there to answer
};

class Router {
 public:
  static Result<std::unique_ptr<Router>> start(const RouterOptions& options, std::unique_ptr<RouterGate> gate);
  virtual ~Router() = default;

  virtual std::string address(int listener) const = 0;
  virtual RouterStats stats() const = 0;
  virtual const FleetView& fleet() const = 0;
  // The replicas there are from now on, beside those of the options. One that is not among them any more goes on as
  // long as it answers. Any thread.
  virtual void set_members(const std::vector<std::string>& urls) = 0;
  // A router without others leads: it says where adapters are at home. With a registry it says who does, and what that
  // one has planned. Any thread.
  virtual const std::string& name() const = 0;
  virtual void set_leads(bool leads) = 0;
  virtual void follow_plan(const FleetPlan& plan) = 0;
  // No new connections; what is in flight goes on. Waits at most so long; true when nothing is left.
  virtual bool drain(std::chrono::milliseconds timeout) = 0;
};

}  // namespace lk
