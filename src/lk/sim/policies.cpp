// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/policies.h"

#include <algorithm>
#include <vector>

#include "lk/base/check.h"
#include "lk/sched/deficit_queue.h"
#include "lk/sched/enum_names.h"
#include "lk/sched/fair_queue.h"
#include "lk/sim/distributions.h"

namespace lk::sim {
namespace {

constexpr EnumNames<Policy, 5> kPolicies{{{"fcfs", Policy::kFcfs},
                                          {"vtc", Policy::kVtc},
                                          {"lcf", Policy::kLcf},
                                          {"drr", Policy::kDrr},
                                          {"dlpm", Policy::kDlpm}}};

class LcfQueue : public FairQueue {
 public:
  using FairQueue::FairQueue;
  bool bounds_lag() const override { return false; }  // it pays back whatever was missed

 protected:
  void insert(Ticket& ticket, bool) override { FairQueue::insert(ticket, false); }
  void sweep() override {}  // whom it forgot would not be lifted
};

class DrrQueue : public DeficitQueue {
 public:
  explicit DrrQueue(const QueueOptions& options) : DeficitQueue(options, {}) {}

 protected:
  Ticket* pick() override {
    do {
      for (const Tenant* tenant : ring_)
        if (const auto first = first_of(*tenant); tenant->credit > 0 && first != tenant->waiting.end())
          return first->second;
    } while (refill());
    return nullptr;
  }
};

std::unique_ptr<QueuePolicy> make_lcf(const QueueOptions& options, Locality) {
  return std::make_unique<LcfQueue>(options);
}
std::unique_ptr<QueuePolicy> make_drr(const QueueOptions& options, Locality) {
  return std::make_unique<DrrQueue>(options);
}

}  // namespace

Result<Policy> parse_policy(std::string_view text) { return parse_name("scheduling policy", text, kPolicies); }

const char* to_string(Policy policy) {
  return std::find_if(kPolicies.begin(), kPolicies.end(), [&](const auto& entry) { return entry.second == policy; })
      ->first.data();
}

void set_policy(SchedulerOptions& options, Policy policy) {
  options.make_queue = QueuePolicy::create;
  switch (policy) {
    case Policy::kFcfs:
      options.queue.kind = QueueKind::kFcfs;
      return;
    case Policy::kLcf:
      options.make_queue = make_lcf;
      [[fallthrough]];
    case Policy::kVtc:
      options.queue.kind = QueueKind::kVtc;
      return;
    case Policy::kDrr:
      options.make_queue = make_drr;
      [[fallthrough]];
    case Policy::kDlpm:
      options.queue.kind = QueueKind::kDlpm;
      return;
  }
}

Result<ServiceCost> parse_service_cost(std::string_view text) {
  if (text == "profiled")
    return ServiceCost{.prompt = 2.1, .output = 1, .product = 0.04, .output_square = 0.032, .constant = 11.46};
  if (text.find(',') == std::string_view::npos) return ServiceCost::parse(text);
  std::vector<double> numbers;
  for (const std::string& part : split(std::string(text), ',')) {
    LK_ASSIGN_OR_RETURN(const double number, parse_number(part, "a price", 0, 1e6));
    numbers.push_back(number);
  }
  if (numbers.size() != 5)
    return invalid_argument(
        "service cost \"{}\": want prompt:output such as 1:2, \"profiled\", or five numbers a,b,c,d,e", text);
  const ServiceCost cost{.prompt = numbers[0],
                         .output = numbers[1],
                         .product = numbers[2],
                         .output_square = numbers[3],
                         .constant = numbers[4]};
  LK_RETURN_IF_ERROR(cost.check().with_context(fmt::format("service cost \"{}\"", text)));
  return cost;
}

}  // namespace lk::sim
