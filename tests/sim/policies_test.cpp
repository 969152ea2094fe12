// SPDX-License-Identifier: Apache-2.0
// Policies that only a simulation offers, on the tests' TokenServer.
#include "lk/sim/policies.h"

#include <gtest/gtest.h>

#include "sched/token_server.h"

namespace lk::sim {
namespace {

std::unique_ptr<QueuePolicy> make(Policy policy, QueueOptions queue = kPlain, Locality locality = {}) {
  SchedulerOptions options{.queue = queue};
  set_policy(options, policy);
  return options.make_queue(options.queue, std::move(locality));
}

TEST(SimPolicies, LcfPaysBackIdleTime) {
  for (const bool queued : {true, false})
    EXPECT_GT(share_after_idle(make(Policy::kLcf), queued), 0.9) << "without the lift a newcomer takes it all";
  EXPECT_FALSE(make(Policy::kLcf)->bounds_lag());
  EXPECT_TRUE(make(Policy::kVtc)->bounds_lag());
}

TEST(SimPolicies, DrrSharesTheServerByWeight) {
  TokenServer server(make(Policy::kDrr), 10'000);
  server.policy->set_weight(1, 3);
  for (int step = 0; step < 12'000; ++step) {
    Backlog{0, fixed(256, 32)}.refill(server);
    Backlog{1, fixed(32, 256)}.refill(server);
    server.step();
  }
  EXPECT_NEAR(static_cast<double>(server.service(1)) / static_cast<double>(server.service(0)), 3, 0.15);
}

TEST(SimPolicies, DlpmTakesWhatIsResidentWhileThereIsCredit) {
  const auto switches = [](Policy policy) {
    AdapterId resident = kBaseModel;
    TokenServer server(make(policy, {.prediction = Prediction::kNone, .quantum = 2'000'000},
                            [&](Ticket& ticket) { return ticket.request->adapter == resident; }),
                       500);
    int count = 0;
    server.on_dispatch = [&](const Job& job, int64_t) {
      count += job.owned.adapter != resident;
      resident = job.owned.adapter;
    };
    Rng rng(3);
    for (int step = 0; step < 3000; ++step) {
      for (TenantId tenant = 0; tenant < 3; ++tenant)
        if (server.waiting().size() < 60) server.arrive(tenant, 40, 40, static_cast<AdapterId>(rng.below(4)));
      server.step();
    }
    const auto [least, most] = std::minmax({server.service(0), server.service(1), server.service(2)});
    EXPECT_LE(most - least, 2 * (2'000'000 + kOutputPrice * 500));  // about its bound, 2 (U + quantum)
    return count;
  };
  EXPECT_LT(switches(Policy::kDlpm), switches(Policy::kDrr) / 2);
}

TEST(SimPolicies, PricesOfPapers) {
  EXPECT_EQ(parse_service_cost("1:2").value().of(10, 5), 20'000);
  EXPECT_EQ(parse_service_cost("profiled").value().of(100, 0), 221'460);
  EXPECT_EQ(parse_service_cost("1,2,0.5,0.25,3").value().of(2, 4), 1000 * (2 + 8 + 4 + 4 + 3));
  for (const char* bad : {"", "1,2,3", "1,0,1,1,1", "1,2,nan,0,0", "1,2,-1,0,0", "0,1,1e6,0,0"})
    EXPECT_EQ(parse_service_cost(bad).status().code(), StatusCode::kInvalidArgument) << bad;
}

TEST(SimPolicies, NamesAreParsed) {
  for (const Policy policy : {Policy::kFcfs, Policy::kVtc, Policy::kLcf, Policy::kDrr, Policy::kDlpm})
    EXPECT_EQ(parse_policy(to_string(policy)).value(), policy);
  EXPECT_FALSE(parse_policy("luck").ok());
}

}  // namespace
}  // namespace lk::sim
