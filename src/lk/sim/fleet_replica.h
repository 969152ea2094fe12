// SPDX-License-Identifier: Apache-2.0
// FleetReplica: one replica of a simulated fleet.
#pragma once

#include <memory>
#include <vector>

#include "lk/cluster/replica_report.h"
#include "lk/sched/scheduler.h"
#include "lk/sim/simulation.h"

namespace lk::sim {

std::string adapter_name(AdapterId adapter);  // "" of the base model

class FleetReplica {
 public:
  // `id` names this start of it.
  FleetReplica(const SimOptions& options, std::string id);

  struct Work {
    int32_t request = 0;  // of the workload
    int64_t source = 0;   // of its relay
  };
  // Takes a request of which `so_far` tokens have been made elsewhere.
  Status submit(const SimRequest& request, const Work& work, int32_t so_far, Micros now);
  void cancel(const Work& work);
  void prefetch(AdapterId adapter) { scheduler_->prefetch(adapter); }
  // One step of the scheduler, at its own time; `until`: when something else happens, if nothing can run before.
  struct Event {
    Work work;
    bool has_token = false, ended = false, failed = false;
    int32_t index = 0;  // of the token in the output
    int content = 0;    // which weights its adapter has there
  };
  std::vector<Event> step(Micros until);

  bool has_work() const { return scheduler_->has_work(); }
  bool is_empty() const { return live_ == 0; }
  Micros now() const { return executor_->now(); }
  void advance_to(Micros time);  // unless it has work
  void jump_to(Micros time) {    // unless it is there already
    if (executor_->now() < time) executor_->advance_to(time);
  }
  void set_slow(bool slow) { slow_ = slow; }
  std::vector<Work> live() const;
  ReplicaReport report() const;

  bool draining = false;
  int64_t num_loads() const { return static_cast<int64_t>(executor_->loads().size()); }
  int64_t num_disk_reads() const { return executor_->num_disk_reads(); }
  int64_t num_preemptions() const { return scheduler_->stats().num_preemptions; }
  double busy_us() const { return executor_->busy_us(); }

 private:
  struct Entry {
    Work work;
    int32_t made = 0;  // tokens of its output
    bool live = false;
  };
  const SimOptions& options_;
  const std::string id_;
  Faults faults_{FaultOptions{}};
  std::unique_ptr<SimExecutor> executor_;
  std::unique_ptr<UnifiedPool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<Entry> entries_;  // by the scheduler's id
  int64_t live_ = 0;
  bool slow_ = false;
};

}  // namespace lk::sim
