// SPDX-License-Identifier: Apache-2.0
// Policies that only a simulation offers: what the server's are compared with in papers and in
// docs/design/scheduling.md.
#pragma once

#include "lk/sched/scheduler.h"

namespace lk::sim {

enum class Policy : uint8_t {
  kFcfs,
  kVtc,
  kLcf,  // VTC without the lift: least served since the start
  kDrr,  // deficit round robin over tenants (the adapted DRR of arXiv:2401.00588, appendix C.2): dlpm without locality
  kDlpm
};
Result<Policy> parse_policy(std::string_view text);  // "fcfs", "vtc", "lcf", "drr", "dlpm"
const char* to_string(Policy policy);
// Sets the kind of queue and who makes it.
void set_policy(SchedulerOptions& options, Policy policy);

// What ServiceCost::parse() reads, "profiled" (milliseconds of Llama-2-7B on an A10G, times ten, as the VTC authors
// profiled it in appendix B.2), or "a,b,c,d,e" = a p + b q + c p q + d q^2 + e.
Result<ServiceCost> parse_service_cost(std::string_view text);

}  // namespace lk::sim
