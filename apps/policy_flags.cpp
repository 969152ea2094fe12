// SPDX-License-Identifier: Apache-2.0
#include "policy_flags.h"

namespace lk::apps {

std::vector<PolicyFlag> policy_flags() {
  return {{"policy", "who is served first: fcfs", [](SchedulerOptions&, const std::string& value) {
             return value == "fcfs" ? Status() : invalid_argument("--policy is fcfs, got \"{}\"", value);
           }}};
}

}  // namespace lk::apps
