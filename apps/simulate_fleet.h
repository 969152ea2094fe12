// SPDX-License-Identifier: Apache-2.0
// lorikeet simulate --replicas N: many machines behind routers.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "lk/sim/spec.h"

namespace lk::apps {

struct FleetFlags {
  int replicas = 0;  // 0: one machine, without routers
  int routers = 1;
  std::vector<std::string> policies, planners, faults;
  bool placement = true;
  double report_age = 0, slo_first_token = 2, slo_token = 0.1;

  void add_to(CLI::App& command);
  // One row per policy.
  Status run(const sim::SimSpec& spec, const std::string& out) const;
  // Random fleets, each with random faults.
  static Status fuzz(int64_t first_seed, int64_t seeds);
};

}  // namespace lk::apps
