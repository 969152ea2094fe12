// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/move_problem.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lk/base/rng.h"

namespace lk {
namespace {

using namespace std::chrono_literals;

MoveProblem drawn(uint64_t seed, int replicas, int requests, int adapters) {
  Rng rng(seed);
  const auto uniform = [&](double low, double high) { return low + (high - low) * rng.uniform(); };
  const auto below = [&](int count) { return static_cast<int>(rng.below(static_cast<uint64_t>(count))); };
  MoveProblem problem;
  for (int j = 0; j < replicas; ++j)
    problem.replicas.push_back({.fixed = rng.below(2) == 0 ? 0 : uniform(0, 5),
                                .slowness = rng.below(4) == 0 ? uniform(0.5, 2) : 1,
                                .free_pages = uniform(15, 100),
                                .takes = rng.below(6) != 0});
  for (int a = 0; a < adapters; ++a) {
    MoveProblem::Adapter adapter{.load_seconds = uniform(0, 0.2), .pages = uniform(0, 10)};
    for (int j = 0; j < replicas; ++j) adapter.on.push_back(rng.below(2) == 0);
    problem.adapters.push_back(std::move(adapter));
  }
  const int hot = below(replicas);
  for (int i = 0; i < requests; ++i) {
    const bool runs = rng.below(2) == 0;
    problem.requests.push_back({.at = rng.below(3) == 0 ? below(replicas) : hot,
                                .adapter = below(adapters + 1) - 1,
                                .work = std::exp(uniform(-1.5, 1.5)),
                                .price = runs ? uniform(0, 0.5) : 0,
                                .pages = uniform(1, 20),
                                .moves = rng.below(8) != 0});
  }
  return problem;
}

// All of them.
double least_cost(const MoveProblem& problem) {
  const auto count = static_cast<int>(problem.replicas.size());
  Assignment assignment(problem.requests.size(), 0);
  double least = cost_of(problem, assignment_of(problem)).value();
  for (;;) {
    if (const Result<double> cost = cost_of(problem, assignment); cost.ok()) least = std::min(least, *cost);
    size_t i = 0;
    while (i < assignment.size() && ++assignment[i] == count) assignment[i++] = 0;
    if (i == assignment.size()) return least;
  }
}

TEST(MoveProblemTest, GreedyIsNeverWorseThanNothingAndCloseToTheBest) {
  int improved = 0;
  double worst = 1;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const int replicas = 2 + static_cast<int>(seed % 2);
    const MoveProblem problem = drawn(seed, replicas, replicas == 2 ? 10 : 7, 4);
    const double before = cost_of(problem, assignment_of(problem)).value();
    const Result<double> greedy = cost_of(problem, plan_greedy(problem));
    ASSERT_TRUE(greedy.ok()) << seed << ": " << greedy.status().message();
    EXPECT_LE(*greedy, before + 1e-9) << seed;
    const double least = least_cost(problem);
    worst = std::max(worst, *greedy / least);
    EXPECT_LE(*greedy, 1.10 * least) << seed;
    improved += *greedy < 0.9 * before;
  }
  EXPECT_GT(improved, 100) << "what was drawn has something to move";
  RecordProperty("worst", std::to_string(worst));
}

TEST(MoveProblemTest, TheProgramFindsTheBest) {
  if (!has_ilp()) GTEST_SKIP() << "built without CBC (Debian: coinor-libcbc-dev)";
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const MoveProblem problem = drawn(seed, 3, 7, 4);
    const Assignment greedy = plan_greedy(problem);
    const Result<Assignment> best = plan_ilp(problem, greedy, 10s);
    ASSERT_TRUE(best.ok()) << seed << ": " << best.status().message();
    const Result<double> cost = cost_of(problem, *best);
    ASSERT_TRUE(cost.ok()) << seed << ": " << cost.status().message();
    EXPECT_NEAR(*cost, least_cost(problem), 1e-4) << seed;
  }
  // As many as the planner gives it.
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const MoveProblem problem = drawn(seed, 8, 200, 20);
    const Assignment greedy = plan_greedy(problem);
    const Result<Assignment> best = plan_ilp(problem, greedy, 500ms);
    ASSERT_TRUE(best.ok()) << seed << ": " << best.status().message();
    const Result<double> cost = cost_of(problem, *best);
    ASSERT_TRUE(cost.ok()) << seed << ": " << cost.status().message();
    EXPECT_LE(cost_of(problem, greedy).value(), 1.10 * *cost) << seed;
  }
}

TEST(MoveProblemTest, WithoutTheSolverItSaysSo) {
  if (has_ilp()) GTEST_SKIP() << "built with CBC";
  const Result<Assignment> none = plan_ilp(drawn(1, 2, 3, 1), {}, 1s);
  EXPECT_EQ(none.status().code(), StatusCode::kUnsupported);
}

TEST(MoveProblemTest, MovesOnlyForMoreThanItCosts) {
  MoveProblem problem{.replicas = {{.free_pages = 100}, {.free_pages = 100}},
                      .requests = {{.at = 0, .work = 1, .price = 0.2}, {.at = 0, .work = 1, .price = 0.2}},
                      .adapters = {}};
  const Assignment one = plan_greedy(problem);
  EXPECT_TRUE(one == (Assignment{0, 1}) || one == (Assignment{1, 0})) << "from 2 and 0 to 1 and 1.2";
  for (MoveProblem::Request& request : problem.requests) request.price = 1.5;
  EXPECT_EQ(plan_greedy(problem), (Assignment{0, 0})) << "2.5 would be more than 2";
  for (MoveProblem::Request& request : problem.requests) request.price = 0.2, request.moves = false;
  EXPECT_EQ(plan_greedy(problem), (Assignment{0, 0}));
  for (MoveProblem::Request& request : problem.requests) request.moves = true, request.pages = 101;
  EXPECT_EQ(plan_greedy(problem), (Assignment{0, 0})) << "no room";
}

TEST(MoveProblemTest, GoesWhereItsAdapterIs) {
  MoveProblem problem{.replicas = {{.free_pages = 100}, {.free_pages = 100}, {.free_pages = 100}},
                      .requests = {{.at = 0, .adapter = 0, .work = 1}, {.at = 0, .adapter = 0, .work = 1}},
                      .adapters = {{.on = {true, false, true}, .load_seconds = 0.5}}};
  const Assignment plan = plan_greedy(problem);
  EXPECT_TRUE(plan == (Assignment{0, 2}) || plan == (Assignment{2, 0}));
}

TEST(MoveProblemTest, DloraRoundsFractionsOfOnePair) {
  MoveProblem problem{.replicas = {{}, {}}, .requests = {}, .adapters = {}};
  for (int i = 0; i < 5; ++i) problem.requests.push_back({.at = 0, .work = 1, .price = 0.05});
  // From 5 and 0: two whole ones and about half of the third, which is 0.46 and stays.
  EXPECT_EQ(plan_relaxed(problem), (Assignment{1, 1, 0, 0, 0}));
  problem.replicas[1].takes = false;
  EXPECT_EQ(plan_relaxed(problem), assignment_of(problem));
}

}  // namespace
}  // namespace lk
