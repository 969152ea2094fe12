// SPDX-License-Identifier: Apache-2.0
// The scheduler's options on a command line. The policy is one table for `serve`, `generate` and `simulate` (where each
// can be swept, and some have more choices: sim/spec.h).
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lk/merging/chooser.h"
#include "lk/sched/scheduler.h"

namespace lk::apps {

struct PolicyFlag {
  std::string name, help, standard;  // without the dashes; the default, as it would be given
  std::function<Status(SchedulerOptions&, const std::string& value)> set;
  std::string type = "TEXT";  // of the value, as CLI11 calls it: a configuration file must have that
  bool advanced = false;      // an operator rarely turns it
};
const std::vector<PolicyFlag>& policy_flags();
// kInvalidArgument when options contradict each other; `given` are the names that were set.
Status check_policy(const SchedulerOptions& options, const std::set<std::string>& given);

// For the commands that run a model.
struct SchedulerFlags {
  SchedulerOptions options;                                 // of what is not policy
  std::vector<std::pair<std::string, std::string>> values;  // the policy's, as given
  bool no_prefix_cache = false;
  std::string merging = "never";
  std::vector<std::string> exact;  // glob patterns of adapters that are never merged

  void add_to(CLI::App& command);
  // kInvalidArgument when a name is unknown, a number out of range, or options contradict each other.
  Result<SchedulerOptions> parse() const;
  Result<MergeMode> parse_merging() const;
};

}  // namespace lk::apps
