// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "lk/base/rng.h"

namespace lk {
namespace {

std::string url(int i) { return "http://r" + std::to_string(i); }

PlacementProblem drawn(Rng& rng, int replicas, int adapters) {
  PlacementProblem problem;
  for (int j = 0; j < replicas; ++j) problem.replicas.push_back({.url = url(j), .memory = 64e9});
  for (int a = 0; a < adapters; ++a)
    problem.adapters.push_back(
        {.name = "a" + std::to_string(a), .work = 1.0 / (a + 1), .bytes = 1e8 + 1e7 * rng.uniform()});
  return problem;
}

std::vector<double> loads(const PlacementProblem& problem, const Placement& placement) {
  std::vector<double> loads(problem.replicas.size());
  for (const auto& adapter : problem.adapters) {
    const auto homes = placement.homes.find(adapter.name);
    if (homes == placement.homes.end()) continue;
    for (size_t j = 0; j < loads.size(); ++j)
      if (placement.is_home(adapter.name, problem.replicas[j].url))
        loads[j] += adapter.work / static_cast<double>(homes->second.size());
  }
  return loads;
}

size_t num_homes(const Placement& placement) {
  size_t count = 0;
  for (const auto& [name, homes] : placement.homes) count += homes.size();
  return count;
}

TEST(PlacementTest, EachReplicaHasItsPartAndThePopularAreOnSeveral) {
  Rng rng(1);
  const PlacementProblem problem = drawn(rng, 8, 200);
  const Placement placement = place(problem, {});
  const std::vector<double> parts = loads(problem, placement);
  const double mean = std::accumulate(parts.begin(), parts.end(), 0.0) / 8;
  for (const double part : parts) EXPECT_LE(part, 1.151 * mean);
  EXPECT_EQ(placement.homes.size(), 200u) << "each has a home";
  EXPECT_EQ(placement.homes.at("a0").size(), 2u) << "17 % of the work, a replica's part is 12.5 %";
  EXPECT_EQ(placement.homes.at("a1").size(), 1u);
  EXPECT_LE(num_homes(placement), 200u + 7u) << "as many as suffice for balance, N + G - 1";
}

TEST(PlacementTest, StaysWhereItIsWhileThatIsGoodEnough) {
  Rng rng(2);
  PlacementProblem problem = drawn(rng, 8, 200);
  const Placement before = place(problem, {});
  EXPECT_EQ(place(problem, before), before);
  // Everything is a little more or less popular: nearly nothing moves.
  for (auto& adapter : problem.adapters) adapter.work *= 0.95 + 0.1 * rng.uniform();
  const Placement after = place(problem, before);
  int changed = 0;
  for (const auto& [name, homes] : after.homes) changed += before.homes.at(name) != homes;
  EXPECT_LE(changed, 10);
  // One replica leaves: what others have stays there, its adapters go to them.
  problem.replicas.pop_back();
  const Placement without = place(problem, before);
  int moved = 0;
  for (const auto& [name, homes] : without.homes) {
    EXPECT_EQ(std::ranges::count(homes, url(7)), 0);
    if (!before.is_home(name, url(7))) moved += before.homes.at(name) != homes;
  }
  EXPECT_LE(moved, 20);
}

TEST(PlacementTest, KeepsToMemory) {
  Rng rng(3);
  PlacementProblem problem = drawn(rng, 4, 100);
  for (auto& replica : problem.replicas) replica.memory = 1e9;
  const Placement placement = place(problem, {});
  std::vector<double> bytes(4);
  for (const auto& adapter : problem.adapters)
    for (size_t j = 0; j < 4; ++j)
      if (placement.is_home(adapter.name, problem.replicas[j].url)) bytes[j] += adapter.bytes;
  for (const double used : bytes) EXPECT_LE(used, 1e9);
  EXPECT_GE(placement.homes.size(), 30u) << "full";
  EXPECT_TRUE(placement.homes.contains("a0")) << "the popular ones are in";
  EXPECT_TRUE(place({}, placement).homes.empty());
}

struct Fleet {
  FleetPicture picture;
  StreamId next = 1;
  void add(int running, int waiting, int own_running, int own_waiting, double left = 200) {
    auto report = std::make_shared<ReplicaReport>();
    report->ready = true;
    report->running = running;
    report->waiting = waiting;
    report->max_running = 16;
    report->pages = report->pages_free = 10'000;
    report->page_bytes = 4096;
    const auto at = static_cast<int>(picture.replicas.size());
    picture.replicas.push_back({.number = 10 + at,
                                .url = url(at),
                                .takes = true,
                                .report = report,
                                .requests = static_cast<double>(running + waiting),
                                .free_pages = 9'000,
                                .step_seconds = 0.03,
                                .tokens_per_second = 4'000});
    for (int i = 0; i < own_running + own_waiting; ++i)
      picture.requests.push_back({.stream = next++,
                                  .at = at,
                                  .request = {.prompt_tokens = 200, .predicted_output = left, .can_move = true},
                                  .made = i < own_running ? 10.0 : 0.0,
                                  .left = left,
                                  .age_seconds = 20.0 - i * 0.1});
  }
};

std::unique_ptr<Planner> planner(const std::string& kind = "greedy") { return Planner::create({.kind = kind}).value(); }

TEST(PlannerTest, WhatWaitsGoesWhereNobodyWaits) {
  Fleet fleet;
  fleet.add(16, 12, 16, 12);
  fleet.add(2, 0, 2, 0);
  fleet.add(3, 0, 3, 0);
  const auto greedy = planner();
  const std::vector<PlannedMove> moves = greedy->moves(fleet.picture);
  ASSERT_GE(moves.size(), 6u);
  EXPECT_LE(moves.size(), 20u);
  int waiting = 0;
  for (const PlannedMove& move : moves) {
    const auto request = std::ranges::find(fleet.picture.requests, move.stream, &FleetPicture::Request::stream);
    EXPECT_EQ(request->at, 0);
    EXPECT_NE(move.to, 10);
    waiting += request->made == 0;
  }
  EXPECT_GE(waiting, 6) << "they cost nothing";
  ASSERT_EQ(greedy->last_hot().size(), 1u);
  EXPECT_EQ(greedy->last_hot()[0].url, url(0));
  EXPECT_EQ(greedy->last_hot()[0].waiting, 12);
  EXPECT_EQ(greedy->last_hot()[0].moved, static_cast<int>(moves.size()));
}

TEST(PlannerTest, NothingMovesWhereItWouldNotHelp) {
  const auto greedy = planner();
  Fleet quiet;  // uneven, and nobody waits
  quiet.add(12, 0, 12, 0);
  quiet.add(1, 0, 1, 0);
  EXPECT_TRUE(greedy->moves(quiet.picture).empty());
  Fleet full;  // everybody waits everywhere
  full.add(16, 12, 16, 12);
  full.add(16, 11, 16, 11);
  EXPECT_TRUE(greedy->moves(full.picture).empty());
  Fleet fixed;  // only others' requests
  fixed.add(16, 12, 0, 0);
  fixed.add(1, 0, 0, 0);
  EXPECT_TRUE(greedy->moves(fixed.picture).empty());
  Fleet moved;  // they have moved enough
  moved.add(16, 12, 16, 12);
  moved.add(1, 0, 1, 0);
  for (auto& request : moved.picture.requests) request.request.moves = 3;
  EXPECT_TRUE(greedy->moves(moved.picture).empty());
  Fleet draining;
  draining.add(16, 12, 16, 12);
  draining.add(1, 0, 1, 0);
  draining.picture.replicas[1].takes = false;
  EXPECT_TRUE(greedy->moves(draining.picture).empty());
  EXPECT_TRUE(planner("off")->moves(moved.picture).empty());
}

// Four routers with the same view each move their part, so that together they do not move too much.
TEST(PlannerTest, RoutersShareWhatIsTooMuch) {
  Fleet whole;
  whole.add(16, 16, 16, 16);
  whole.add(2, 0, 0, 0);
  whole.add(2, 0, 0, 0);
  const size_t alone = planner()->moves(whole.picture).size();
  size_t together = 0;
  for (int router = 0; router < 4; ++router) {
    Fleet part;
    part.add(16, 16, 4, 4);
    part.add(2, 0, 0, 0);
    part.add(2, 0, 0, 0);
    together += planner()->moves(part.picture).size();
  }
  EXPECT_GT(alone, 4u);
  EXPECT_LE(together, alone + 4);
}

TEST(PlannerTest, TheExactPlannerIsNoWorse) {
  if (!has_ilp()) {
    EXPECT_EQ(Planner::create({.kind = "ilp"}).status().code(), StatusCode::kUnsupported);
    GTEST_SKIP() << "built without CBC (Debian: coinor-libcbc-dev)";
  }
  Fleet fleet;
  for (int j = 0; j < 12; ++j) fleet.add(j < 3 ? 16 : 2, j < 3 ? 12 : 0, j < 3 ? 16 : 2, j < 3 ? 12 : 0, 100 + 10 * j);
  const auto ilp = Planner::create({.kind = "ilp", .ilp_limit = std::chrono::seconds(5)}).value();
  EXPECT_GE(ilp->moves(fleet.picture).size(), 10u);
}

TEST(PlannerTest, DloraMovesBetweenOnePairByCounts) {
  Fleet fleet;
  fleet.add(16, 40, 16, 40);
  fleet.add(16, 4, 16, 4);
  fleet.add(2, 0, 2, 0);
  const auto dlora = planner("dlora");
  EXPECT_EQ(dlora->interval_seconds(), 10);
  const std::vector<PlannedMove> moves = dlora->moves(fleet.picture);
  EXPECT_GT(moves.size(), 20u);
  for (const PlannedMove& move : moves) EXPECT_EQ(move.to, 12);
  Fleet even;
  even.add(16, 4, 16, 4);
  even.add(2, 0, 2, 0);
  EXPECT_TRUE(dlora->moves(even.picture).empty()) << "less than sixteen more than the mean";
}

// It counts replicas that take requests, and no others: neither for the mean nor as one of the pair.
TEST(PlannerTest, DloraGoesOnWhileTheFirstReplicaDrains) {
  Fleet fleet;
  fleet.add(2, 0, 2, 0);
  fleet.add(16, 24, 16, 24);
  fleet.add(2, 0, 2, 0);
  fleet.picture.replicas[0].takes = false;
  const std::vector<PlannedMove> moves = planner("dlora")->moves(fleet.picture);
  EXPECT_GT(moves.size(), 10u);
  for (const PlannedMove& move : moves) EXPECT_EQ(move.to, 12);
  fleet.picture.replicas[2].takes = false;
  EXPECT_TRUE(planner("dlora")->moves(fleet.picture).empty()) << "there is no pair";
  // 26 against a mean of 18 of the two that take requests: too little; of all three the mean would be 12.
  Fleet even;
  even.add(0, 0, 0, 0);
  even.add(16, 10, 16, 10);
  even.add(10, 0, 10, 0);
  even.picture.replicas[0].takes = false;
  EXPECT_TRUE(planner("dlora")->moves(even.picture).empty());
}

// What a replica that drains has is the others' to do, and its room is nobody's.
TEST(PlannerTest, ReplicasThatDrainLowerNoMean) {
  Fleet fleet;
  fleet.add(16, 5, 16, 5);
  fleet.add(16, 2, 16, 2);
  for (int j = 0; j < 4; ++j) {
    fleet.add(0, 0, 0, 0);
    fleet.picture.replicas.back().takes = false;
  }
  const auto greedy = planner();
  EXPECT_TRUE(greedy->moves(fleet.picture).empty());
  EXPECT_TRUE(greedy->last_hot().empty()) << "21 is no more than a quarter above 19.5";
}

TEST(PlannerTest, PopularAdaptersAreFetchedAhead) {
  Fleet fleet;
  for (int j = 0; j < 3; ++j) fleet.add(4, 0, 0, 0);
  auto report = std::make_shared<ReplicaReport>(*fleet.picture.replicas[0].report);
  report->adapters = {{"hot", {.bytes = 1000, .on_device = true, .in_flight = 6}},
                      {"rare", {.bytes = 1000, .on_device = true}}};
  fleet.picture.replicas[0].report = report;
  const auto greedy = planner();
  for (int second = 0; second < 60; ++second) greedy->observe(fleet.picture, 1);
  EXPECT_GT(greedy->work_of("hot"), 0.5);
  EXPECT_EQ(greedy->work_of("rare"), 0);
  const Placement& placement = greedy->place(fleet.picture);
  EXPECT_EQ(placement.homes.size(), 1u);
  EXPECT_EQ(placement.homes.at("hot").size(), 3u) << "all the work there is";
  const std::vector<Planner::Hint> hints = greedy->hints(fleet.picture, placement);
  ASSERT_EQ(hints.size(), 2u) << "the first has it";
  EXPECT_EQ(hints[0].replica, 11);
  EXPECT_THAT(hints[0].adapters, testing::ElementsAre("hot"));
  EXPECT_TRUE(greedy->hints(fleet.picture, placement).empty()) << "not again at once";
}

TEST(PlannerTest, UnknownKindsAreRefused) {
  EXPECT_EQ(Planner::create({.kind = "best"}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lk
