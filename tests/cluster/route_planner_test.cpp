// SPDX-License-Identifier: Apache-2.0
// Who leads and what is published, round by round, against a registry that is a variable.
#include "lk/cluster/route_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

class RoutePlannerTest : public ::testing::Test {
 protected:
  RoutePlannerTest() {
    for (int j = 0; j < 2; ++j) {
      ReplicaReport report{.id = "p" + std::to_string(j), .ready = true};
      report.adapters["a"] = {.bytes = 1000, .on_device = true, .in_flight = 2};
      EXPECT_TRUE(fleet_->report(j, std::move(report), std::chrono::steady_clock::now()).ok());
    }
  }
  std::unique_ptr<RoutePlanner> make(const std::string& kind = "greedy") {
    return std::make_unique<RoutePlanner>(*fleet_, Planner::create({.kind = kind}).value(), kind, "me",
                                          RoutePlanner::Host{.move = [](const auto&) {},
                                                             .prefetch = [](int, const std::string&) {},
                                                             .publish =
                                                                 [this](const FleetPlan& plan) {
                                                                   ++published_;
                                                                   registry_ = parse_plan(format_plan(plan)).value();
                                                                 }});
  }
  // As long as it takes until a leader has placed.
  static void rounds(RoutePlanner& planner) {
    for (int i = 0; i < 10; ++i) planner.round();
  }
  const std::unique_ptr<FleetView> fleet_ =
      FleetView::create({.urls = {"http://r0", "http://r1"}, .silence = std::chrono::hours(1)}).value();
  int published_ = 0;
  FleetPlan registry_;
};

TEST_F(RoutePlannerTest, PublishesUntilTheRegistryHasIt) {
  const auto planner = make();
  rounds(*planner);
  ASSERT_EQ(published_, 1);
  EXPECT_EQ(registry_.leader, "me");
  EXPECT_TRUE(registry_.placement.homes.contains("a"));
  rounds(*planner);
  EXPECT_EQ(published_, 2) << "nobody said that it is there";
  planner->follow(registry_);
  rounds(*planner);
  EXPECT_EQ(published_, 2);
  planner->follow({});  // the registry has lost its data
  rounds(*planner);
  EXPECT_EQ(published_, 3);
}

TEST_F(RoutePlannerTest, PublishesWhenItLeadsAgainThoughNothingHasChanged) {
  const auto planner = make();
  rounds(*planner);
  planner->follow(registry_);
  const FleetPlan first = registry_;
  planner->set_leads(false);
  FleetPlan others{.leader = "other", .placement = first.placement};
  planner->follow(others);
  rounds(*planner);
  EXPECT_EQ(published_, 1) << "it does not lead";
  planner->set_leads(true);
  rounds(*planner);
  EXPECT_EQ(published_, 2) << "the plan says who leads, and what is in flight";
  EXPECT_EQ(registry_.leader, "me");
  EXPECT_EQ(registry_.placement, first.placement);
}

TEST_F(RoutePlannerTest, WhoBeginsToLeadGoesOnFromThePlanThatIsThere) {
  const auto planner = make();
  planner->set_leads(false);
  // Balanced, and not where rendezvous hashing would have them all.
  FleetPlan plan{.leader = "other"};
  for (int i = 0; i < 6; ++i) {
    const std::string name = "b" + std::to_string(i);
    plan.placement.homes[name] = {i < 3 ? "http://r0" : "http://r1"};
    plan.work[name] = 1;
  }
  planner->follow(plan);
  EXPECT_EQ(*fleet_->placement(), plan.placement) << "at once";
  rounds(*planner);
  planner->set_leads(true);
  rounds(*planner);
  for (const auto& [name, homes] : plan.placement.homes) EXPECT_EQ(registry_.placement.homes.at(name), homes) << name;
}

TEST_F(RoutePlannerTest, WhoLosesTheLeadFollowsWhatItHasSeen) {
  const auto planner = make();
  const FleetPlan plan{.leader = "other", .placement = {.homes = {{"x", {"http://r1"}}}}};
  planner->follow(plan);
  EXPECT_NE(*fleet_->placement(), plan.placement) << "it leads";
  planner->set_leads(false);
  EXPECT_EQ(*fleet_->placement(), plan.placement);
  planner->follow({});
  EXPECT_EQ(*fleet_->placement(), plan.placement) << "a registry that lost its data takes nothing";
}

TEST_F(RoutePlannerTest, AMomentWithoutReplicasForgetsNoHomes) {
  const auto planner = make();
  rounds(*planner);
  const Placement before = *fleet_->placement();
  for (const int j : fleet_->numbers()) fleet_->lost(j, unavailable("gone"));
  rounds(*planner);
  EXPECT_EQ(*fleet_->placement(), before);
}

TEST_F(RoutePlannerTest, OnlyKindsThatPlacePublish) {
  for (const std::string& kind : planner_names()) {
    if (kind == "ilp" && !has_ilp()) continue;
    published_ = 0;
    rounds(*make(kind));
    EXPECT_EQ(published_ > 0, planner_places(kind)) << kind;
  }
}

}  // namespace
}  // namespace lk
