// SPDX-License-Identifier: Apache-2.0
// The scheduler's options on a command line: the same for everything that runs it, the simulator included.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "lk/sched/scheduler.h"

namespace lk::apps {

struct SchedulerFlags {
  SchedulerOptions options;  // defaults of what is not a flag's own type
  std::string policy = "vtc", within = "adapter", prediction = "mean", cost = "1:2", admission = "optimistic";
  double quantum = 500, drain_gap = 4000, drain_wait = 5, slo = 0;
  bool no_prefix_cache = false, refuse_late = false;

  void add_to(CLI::App& command);
  // kInvalidArgument when a name is unknown, a number out of range, or two options contradict each other.
  Result<SchedulerOptions> parse() const;

 private:
  CLI::App* command_ = nullptr;  // knows what was given
};

}  // namespace lk::apps
