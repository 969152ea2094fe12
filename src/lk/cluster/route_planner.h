// SPDX-License-Identifier: Apache-2.0
// RoutePlanner: the planner of a running router, on a thread of its own. Once a second it looks at the fleet and says
// which requests should move; where it leads, also where adapters are at home and what replicas should fetch. What the
// registry has is compared with what should be there, not with what was sent: so a plan comes back whose writing
// failed, that another one wrote over, or that the registry lost.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lk/cluster/fleet_plan.h"
#include "lk/cluster/fleet_view.h"
#include "lk/cluster/planner.h"

namespace lk {

class RoutePlanner {
 public:
  // Called on the planner's thread; none may wait for long.
  struct Host {
    std::function<void(std::vector<PlannedMove>)> move;
    std::function<void(int replica, const std::string& adapter)> prefetch;
    std::function<void(const FleetPlan&)>
        publish;  // of a router that leads, when the registry has another; may be empty
  };
  // What is shown.
  struct Figures {
    std::string kind = "off";
    bool leads = false;
    int64_t homes = 0, hints = 0;   // now; since the start
    std::vector<Planner::Hot> hot;  // that had too much, in the last round that had any
    double hot_seconds_ago = -1;    // -1: there was none
  };

  // `fleet` must outlive it. `name`: the router's.
  RoutePlanner(FleetView& fleet, std::unique_ptr<Planner> planner, std::string kind, std::string name, Host host);
  ~RoutePlanner() { stop(); }
  void start();  // rounds on a thread, unless the kind is "off"; once
  void stop();   // no more of them; figures() goes on
  // Alone a router leads; with a registry it says who does.
  void set_leads(bool leads);
  // What the registry has now, whoever wrote it. Without a leader: nothing.
  void follow(const FleetPlan& plan);
  Figures figures() const;
  void round();  // what the thread does once a second; by hand where it was not started

 private:
  void run();
  void place(const FleetPicture& picture, const FleetPlan* seen);

  FleetView& fleet_;
  const std::unique_ptr<Planner> planner_;  // the thread's only
  const std::string kind_, name_;
  const Host host_;
  std::atomic<bool> leads_{true};
  std::atomic<int64_t> hints_{0};
  int64_t rounds_ = 0;  // the thread's only, like the next
  bool led_ = false;    // in the last round
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;  // guarded by mutex_, like all below
  std::vector<Planner::Hot> hot_;
  FleetView::Time hot_at_{};
  std::shared_ptr<const FleetPlan> seen_;  // in the registry; null = none
  std::thread thread_;
};

}  // namespace lk
