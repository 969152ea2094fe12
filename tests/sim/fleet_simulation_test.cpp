// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/fleet_simulation.h"

#include <gtest/gtest.h>

namespace lk::sim {
namespace {

// A step takes 10 ms and 20 us a row; an adapter loads in 5 ms.
FleetSimOptions small_fleet(int replicas) {
  FleetSimOptions options{.replicas = replicas};
  options.replica.model = {.name = "plain",
                           .weight_bytes = 1,
                           .memory_bytes_s = 1e15,
                           .flops_s = 1e15,
                           .step_us = 10'000,
                           .token_us = 20,
                           .kv_bytes_per_token = 64,
                           .attention_bytes_s = 1e15,
                           .adapter_bytes_per_rank = 512,
                           .adapter_flops_s = 1e15,
                           .load_bytes_s = 1e6,
                           .disk_bytes_s = 1e6,
                           .pool_bytes = 400 * 16 * 64};
  const int64_t ranks[] = {8};
  options.replica.adapters = make_adapters(options.replica.model, 12, ranks);
  options.replica.num_pages = 400;
  options.replica.scheduler.max_step_tokens = 256;
  options.replica.scheduler.max_running = 32;
  options.replica.scheduler.prefix_cache = false;
  return options;
}

Workload some_requests(uint64_t seed, double rate, double seconds) {
  WorkloadSpec spec{.seed = seed};
  Stream stream{.tenant = 0, .num_adapters = 12, .popularity = Popularity::zipf(1)};
  stream.phases = {{.kind = Phase::Kind::kGamma, .end_s = seconds, .rate = rate, .cv = 2}};
  stream.input = LengthDist::uniform(8, 200);
  stream.output = LengthDist::uniform(1, 120);
  spec.streams = {stream};
  return generate(spec).value();
}

TEST(FleetSimulation, QuietFleetsFinishEverything) {
  for (const std::string& policy : picker_names()) {
    FleetSimOptions options = small_fleet(3);
    options.policy = policy;
    const Workload workload = some_requests(1, 20, 30);
    const FleetResult result = simulate_fleet(options, workload).value();
    EXPECT_EQ(result.done, result.requests) << policy;
    EXPECT_EQ(result.others.continued + result.others.hedged + result.others.retried + result.mismatches, 0) << policy;
    if (policy != "dlora-rr") {  // whose homes know nothing of popularity
      EXPECT_GT(result.slo_attainment, 0.95) << policy;
      EXPECT_LT(result.busy_max_over_mean, 2.5) << policy;
    }
    const FleetResult again = simulate_fleet(options, workload).value();
    EXPECT_EQ(again.ttft_s.mean, result.ttft_s.mean) << "to the last bit";
  }
}

// Every kind of fault, often, all at once: no request is lost, ends twice, or has a token out of turn (simulate_fleet()
// itself says so), and none is given up while others could have answered.
TEST(FleetSimulation, FaultsLoseNothing) {
  FleetView::Counts others;
  int64_t faults = 0, given_up = 0, requests = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    FleetSimOptions options = small_fleet(6);
    options.seed = seed;
    options.routers = 1 + static_cast<int>(seed % 3);
    options.policy = picker_names()[seed % picker_names().size()];
    options.report_age_s = seed % 2 == 0 ? 0 : 0.4;
    options.planner = seed % 5 == 0 ? "off" : seed % 5 == 1 ? "dlora" : "greedy";
    options.faults = {
        .kills = 120, .hangs = 120, .partitions = 120, .drains = 60, .slowdowns = 60, .repair_s = 5, .hang_s = 3};
    const Result<FleetResult> result = simulate_fleet(options, some_requests(seed, 12, 40));
    ASSERT_TRUE(result.ok()) << seed << ": " << result.status().message();
    EXPECT_EQ(result->done + result->given_up, result->requests);
    EXPECT_EQ(result->mismatches, 0);
    requests += result->requests;
    given_up += result->given_up;
    faults += result->kills + result->hangs + result->partitions + result->drains + result->slowdowns;
    others.continued += result->others.continued;
    others.hedged += result->others.hedged;
    others.moved += result->others.moved;
    others.retried += result->others.retried;
  }
  // What was drawn is what it is about.
  EXPECT_GT(faults, 500);
  EXPECT_GT(others.continued, 100);
  EXPECT_GT(others.hedged, 100);
  EXPECT_GT(others.moved, 20);
  EXPECT_GT(others.retried, 20);
  EXPECT_LT(given_up, requests / 200) << "all six were away, or four in a row broke";
}

TEST(FleetSimulation, WhoIsKilledIsReplacedWithinItsFault) {
  FleetSimOptions options = small_fleet(3);
  options.faults = {.kills = 240, .repair_s = 2};
  const FleetResult result = simulate_fleet(options, some_requests(3, 10, 60)).value();
  EXPECT_GT(result.kills, 3);
  EXPECT_EQ(result.given_up, 0);
  EXPECT_GT(result.recomputed_tokens, 0);
  EXPECT_LT(result.longest_gap_s.max, 2) << "of a stream whose replica was killed";
}

// Replicas that refuse what is new, requests that everybody refuses, and the same name for other weights: an answer is
// of one kind of weights from its first token to its last (simulate_fleet() itself says so), or it is none.
TEST(FleetSimulation, RefusalsAndOtherWeightsMixNothing) {
  int64_t rejected = 0, refusals = 0, requests = 0, given_up = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    FleetSimOptions options = small_fleet(5);
    options.seed = seed;
    options.faults = {.kills = 60, .hangs = 60, .refusals = 240, .repair_s = 5, .hang_s = 3, .rejected = 0.05};
    options.faults.other_weights = seed % 3 == 0 ? 0.3 : 0;
    const Result<FleetResult> result = simulate_fleet(options, some_requests(seed, 12, 40));
    ASSERT_TRUE(result.ok()) << seed << ": " << result.status().message();
    EXPECT_EQ(result->done + result->given_up + result->rejected, result->requests);
    rejected += result->rejected, refusals += result->refusals, requests += result->requests;
    if (options.faults.other_weights == 0) given_up += result->given_up;
  }
  EXPECT_GT(rejected, requests / 40);
  EXPECT_GT(refusals, 100);
  EXPECT_LT(given_up, requests / 50) << "others answer what one refuses";
}

// Whoever sends requests in turn sends long ones to one replica now and then. Moves mend it.
TEST(FleetSimulation, MovesMendWhatRoutingMissed) {
  double with = 0, without = 0;
  int64_t planned = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    FleetSimOptions options = small_fleet(4);
    options.seed = seed;
    options.policy = "rr";
    options.replica.scheduler.max_running = 8;
    options.replica.model.step_us = 50'000;
    const Workload workload = some_requests(seed, 8.5, 120);
    const FleetResult moved = simulate_fleet(options, workload).value();
    options.planner = "off";
    const FleetResult stayed = simulate_fleet(options, workload).value();
    with += moved.ttft_s.mean, without += stayed.ttft_s.mean;
    planned += moved.others.planned;
    EXPECT_EQ(stayed.others.planned, 0);
  }
  EXPECT_GT(planned, 20);
  EXPECT_LT(with, without);
}

TEST(FleetSimulation, RefusesWhatIsNoFleet) {
  const Workload workload = some_requests(1, 1, 10);
  FleetSimOptions options = small_fleet(0);
  EXPECT_EQ(simulate_fleet(options, workload).status().code(), StatusCode::kInvalidArgument);
  options = small_fleet(2);
  options.policy = "best";
  EXPECT_EQ(simulate_fleet(options, workload).status().code(), StatusCode::kInvalidArgument);
  options.policy = "rr";
  options.planner = "best";
  EXPECT_EQ(simulate_fleet(options, workload).status().code(), StatusCode::kInvalidArgument);
  options.planner = "greedy";
  EXPECT_EQ(simulate_fleet(options, {}).status().code(), StatusCode::kInvalidArgument);
  options.report_interval_s = 0;
  EXPECT_EQ(simulate_fleet(options, workload).status().code(), StatusCode::kInvalidArgument);
  options = small_fleet(2);
  options.replica.adapters.clear();
  EXPECT_EQ(simulate_fleet(options, workload).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lk::sim
