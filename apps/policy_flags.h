// SPDX-License-Identifier: Apache-2.0
// The scheduling policy as flags: one table for `serve`, `generate` and `simulate` (where a flag can also be swept).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lk/sched/scheduler.h"

namespace lk::apps {

struct PolicyFlag {
  std::string name, help;  // without the dashes
  std::function<Status(SchedulerOptions&, const std::string& value)> set;
};
std::vector<PolicyFlag> policy_flags();

}  // namespace lk::apps
