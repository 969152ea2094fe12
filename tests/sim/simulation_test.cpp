// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/simulation.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <limits>

#include "lk/sim/fuzz.h"
#include "lk/sim/report.h"

namespace lk::sim {
namespace {

// A step takes 1,000 us, plus 10 us per row; an adapter loads in 100 us per rank. 16 pages of 16 tokens.
CostModel plain_model() {
  CostModel model{.name = "plain",
                  .weight_bytes = 1,
                  .memory_bytes_s = 1e15,
                  .flops_s = 1e15,
                  .step_us = 1000,
                  .token_us = 10,
                  .kv_bytes_per_token = 1,
                  .attention_bytes_s = 1e15,
                  .adapter_bytes_per_rank = 4,
                  .adapter_flops_s = 1e15,
                  .load_bytes_s = 4e4,
                  .disk_bytes_s = 4e3,
                  .pool_bytes = 256};
  return model;
}

struct World {
  SimOptions options{.model = plain_model()};
  Workload workload{.tenants = {{"a"}, {"b"}}, .duration_s = 1};

  World() {
    options.num_pages = options.model.num_pages();
    options.scheduler.prefix_cache = false;
    options.check_invariants = true;
  }
  World& adapters(int64_t count, int64_t rank) {
    options.adapters = make_adapters(options.model, count, std::span(&rank, 1));
    workload.num_adapters = count;
    return *this;
  }
  World& add(Micros arrival, int32_t input, int32_t output, AdapterId adapter = kBaseModel, int32_t tenant = 0) {
    workload.requests.push_back({.arrival = arrival,
                                 .input = input,
                                 .output = output,
                                 .max_tokens = output,
                                 .adapter = adapter,
                                 .tenant = tenant});
    return *this;
  }
  SimResult run() {
    Result<SimResult> result = simulate(options, workload);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result.ok() ? *result : SimResult{};
  }
  std::string error() { return simulate(options, workload).status().message(); }
};

TEST(Simulation, OneRequestTakesItsSteps) {
  const SimResult result = World().add(0, 20, 3).run();
  EXPECT_EQ(result.done, 1);
  EXPECT_NEAR(result.ttft_s.mean, 0.001200, 1e-9);  // 20 rows
  EXPECT_NEAR(result.e2e_s.mean, 0.001200 + 2 * 0.001010, 1e-9);
  EXPECT_EQ(result.itl_s.count, 2);
  EXPECT_EQ(result.steps, 3);
  EXPECT_EQ(result.computed_tokens, 22);
}

TEST(Simulation, IdleTimePassesToTheNextArrival) {
  const SimResult result = World().add(0, 10, 1).add(500'000, 10, 1).run();
  EXPECT_NEAR(result.ttft_s.max, 0.0011, 1e-9);
  EXPECT_NEAR(result.makespan_s, 0.5011, 1e-9);
  EXPECT_NEAR(result.busy_fraction, 0.0022 / 0.5011, 1e-6);
}

TEST(Simulation, TheTrueLengthEndsARequestThatMayGoOn) {
  World world;
  world.add(0, 10, 3);
  world.workload.requests[0].max_tokens = 100;
  const SimResult result = world.run();
  EXPECT_EQ(result.steps, 3);
  EXPECT_EQ(result.tenants[0].output_tokens, 3);
}

// Weights of 64 bytes in 100 us; rank 10 adds 300 us and 40 bytes a segment. Merged weights take 2 of 40 pages.
World merging_world(Merging mode) {
  World world;
  CostModel& model = world.options.model;
  model.weight_bytes = 64, model.flops_per_token = 1000, model.memory_bytes_s = 640e3, model.flops_s = 1e9;
  model.adapter_flops_per_rank = 10, model.adapter_flops_s = 1e9, model.segment_us = 300, model.step_us = 100,
  model.merged_bytes = 32;
  world.options.num_pages = 40;
  world.options.merging = mode;
  world.adapters(2, 10).add(0, 10, 60, 0).add(0, 10, 60, 0).add(0, 10, 60, 1);
  return world;
}

TEST(Simulation, MergingBuildsBesideTheStepsAndSavesSegments) {
  const SimResult never = merging_world(Merging::kNever).run();
  EXPECT_EQ(never.merges.num_builds, 0);
  EXPECT_EQ(never.merges.num_merged_steps, 0);
  const SimResult always = merging_world(Merging::kAlways).run();
  EXPECT_EQ(always.done, 3);
  // Adapter 0 has two of the three requests; the other one is built for its last steps. A build takes 2 x 50 us of
  // memory and 5 us of arithmetic, which fit beside one step.
  EXPECT_EQ(always.merges.num_builds, 2);
  EXPECT_GE(always.merges.num_merged_steps, always.steps - 2);
  // Each step saves a segment of 300 us and its 40 bytes, and costs half of a read of the weights.
  EXPECT_NEAR((never.makespan_s - always.makespan_s) * 1e6, 60 * (300 + 62.5 - 50), 1000);
  const SimResult exclusive = merging_world(Merging::kExclusive).run();
  EXPECT_EQ(exclusive.done, 3);
  EXPECT_GT(exclusive.merges.num_exclusive_steps, 50);
  EXPECT_EQ(exclusive.merges.num_builds, 2) << "first the one, then the other";
  for (const Merging mode : {Merging::kDlora, Merging::kCost})
    EXPECT_EQ(merging_world(mode).run().done, 3) << to_string(mode);
}

TEST(Simulation, MergedWeightsThatDoNotFitAreNotBuilt) {
  World world = merging_world(Merging::kAlways);
  world.options.model.weight_bytes = world.options.model.merged_bytes = 16 * 21;  // more than half of 40 pages
  EXPECT_EQ(world.run().merges.num_builds, 0);
}

TEST(Simulation, AnIdleMachineWaitsForALoad) {
  // Rank 10: 40 bytes at 40 kB/s = 1 ms.
  const SimResult result = World().adapters(1, 10).add(0, 10, 1, 0).run();
  EXPECT_NEAR(result.ttft_s.mean, 0.001 + 0.0011, 1e-9);
  EXPECT_EQ(result.adapter_loads, 1);
  EXPECT_EQ(result.hidden_loads, 0);
  EXPECT_NEAR(result.load_delay_ms, 1, 1e-9);
}

TEST(Simulation, LoadsRunBesideSteps) {
  // The first request decodes on; the second one's load (1 ms) ends within the step that it ran beside, and costs it
  // that step only.
  World world;
  world.options.prefetch = false;
  const SimResult result = world.adapters(1, 10).add(0, 10, 10).add(1, 10, 1, 0).run();
  EXPECT_NEAR(result.e2e_s.max, 0.0011 + 7 * 0.00101 + 0.00111 + 0.00101, 3e-4);
  EXPECT_EQ(result.one_step_loads, 1);
  EXPECT_EQ(result.steps, 10);
}

TEST(Simulation, PrefetchHidesLoadsOfWhatArrivesWithinAStep) {
  // One request decodes in steps of about 1 ms; the others ask for 40 cold adapters that load in 0.1 ms. One in ten
  // arrives too late in its step.
  World world;
  world.options.num_pages = 100;
  world.adapters(40, 1).add(0, 10, 200);
  for (int32_t i = 0; i < 40; ++i) world.add(3'000 + 4'137 * i, 10, 1, i);
  const SimResult with = world.run();
  world.options.prefetch = false;
  const SimResult without = world.run();
  EXPECT_EQ(with.judged_loads, 40);
  EXPECT_GE(with.hidden_loads, 0.8);
  EXPECT_EQ(without.hidden_loads, 0);
  EXPECT_LT(with.ttft_s.mean, without.ttft_s.mean);
}

TEST(Simulation, LoadsAreHiddenFromRequestsThatWaitForTheirTurn) {
  World world;
  world.options.scheduler.max_running = 1;
  const SimResult result = world.adapters(2, 10).add(0, 10, 20, 0).add(1, 10, 5, 1).run();
  EXPECT_EQ(result.adapter_loads, 2);
  EXPECT_EQ(result.judged_loads, 2);
  EXPECT_EQ(result.hidden_loads, 0.5);
}

TEST(Simulation, AHostTierThatIsTooSmallReadsFromDisk) {
  World world;
  world.adapters(2, 10);
  world.options.host_bytes = 40;  // one of the two
  world.options.num_pages = 5;    // one adapter of 3 pages at a time
  world.add(0, 10, 1, 0).add(100'000, 10, 1, 1).add(200'000, 10, 1, 0);
  const SimResult result = world.run();
  EXPECT_EQ(result.adapter_loads, 3);
  EXPECT_EQ(result.cold_loads, 2);
  EXPECT_EQ(result.adapter_evictions, 2);
  EXPECT_NEAR(result.ttft_s.max, 0.011 + 0.0011, 1e-9);  // 10 ms from disk, 1 ms to the device
}

TEST(Simulation, MemoryShortageIsComputedAgain) {
  World world;
  world.options.num_pages = 5;
  world.add(0, 16, 40).add(0, 16, 40);
  const SimResult result = world.run();
  EXPECT_EQ(result.done, 2);
  EXPECT_GT(result.preemptions, 0);
  EXPECT_GT(result.recomputed_tokens, 0);
}

TEST(Simulation, CountsServiceByTenant) {
  const SimResult result =
      World().add(0, 10, 4, kBaseModel, 0).add(0, 30, 2, kBaseModel, 1).add(0, 30, 2, kBaseModel, 1).run();
  EXPECT_EQ(result.tenants[0].service, 10 + 2 * 4);
  EXPECT_EQ(result.tenants[1].service, 2 * (30 + 2 * 2));
  const double a = 18, b = 68;
  EXPECT_NEAR(result.jain_index, (a + b) * (a + b) / (2 * (a * a + b * b)), 1e-12);
  EXPECT_EQ(result.vtc_bound, 2 * 2 * 256);
}

// VTC's suites against its bound (theorem 4.4). Among them the one that theorem 4.8 is about: nobody who keeps going
// and preempts nobody for fairness can promise less than w_q M, half of the bound, where short prompts with long
// answers hold the memory.
TEST(Simulation, TenantsStayWellWithinTheBoundOfVtc) {
  const auto run = [](const std::string& suite, double preempt_gap) {
    SimSpec spec;
    (*find_suite(suite))->apply(spec);
    spec.scheduler.preempt_gap = preempt_gap;
    const Experiment experiment = *make_experiment(spec);
    return *simulate(experiment.options, experiment.workload);
  };
  for (const char* suite : {"vtc-overload", "vtc-on-off-overload", "vtc-short-long", "vtc-prefill-decode",
                            "vtc-arena-like", "vtc-overload-multi", "vtc-13b-768"}) {
    const SimResult result = run(suite, 0.1);
    EXPECT_LT(result.max_backlogged_difference, 0.35 * result.vtc_bound) << suite;
  }
  const SimResult with = run("vtc-prefill-decode", 0.1), without = run("vtc-prefill-decode", 0);
  EXPECT_GT(without.max_backlogged_difference, 0.45 * without.vtc_bound);
  EXPECT_EQ(without.fair_preemptions, 0);
  EXPECT_GE(with.drained_requests_per_s, 0.97 * without.drained_requests_per_s);
}

TEST(Simulation, ServiceDifferenceFollowsItsDefinition) {
  // One tenant gets 60 + 2 * 60 = 180 units in each window of 60 s and asks for as much; the other asks for one request
  // that never starts within the windows: it waits behind nobody, so make it ask and get nothing by arriving at the
  // very end.
  World world;
  world.workload.duration_s = 240;
  for (int i = 0; i < 240; ++i) world.add(i * 1'000'000, 1, 1, kBaseModel, 0);
  const SimResult alone = world.run();
  EXPECT_EQ(alone.service_difference.num_windows, 19);
  // Tenant b asks nothing and gets nothing: d_b = min(s* - 0, |0 - 0|) = 0, and a has what it asked.
  EXPECT_NEAR(alone.service_difference.max, 0, 0.06);
  // Both served alike, one in bursts the other does not have: each gets what it asks for, so nothing is owed.
  for (int i = 0; i < 120; ++i) world.add(239'000'000 + i, 1, 1, kBaseModel, 1);
  EXPECT_LT(world.run().service_difference.mean, 1);
}

TEST(Simulation, ObjectivesCountFirstTokens) {
  World world;
  world.options.metrics.slo_s = 0.0025;
  world.options.scheduler.max_running = 1;
  // First tokens after 1.1 ms and 2.2 ms meet it, after 3.3 ms not.
  const SimResult result = world.add(0, 10, 1).add(0, 10, 1).add(0, 10, 1).run();
  EXPECT_NEAR(result.slo_attainment, 2.0 / 3, 1e-12);
  const auto satisfaction = [](double t) { return 1 - t * t / (0.0025 * 0.0025); };
  EXPECT_NEAR(result.satisfaction, (satisfaction(0.0011) + satisfaction(0.0022)) / 3, 1e-9);
}

TEST(Simulation, RefusesWhatCannotWork) {
  World small;
  small.options.num_pages = 3;
  EXPECT_NE(small.add(0, 40, 20).error().find("does not hold one sequence of 40 + 20 tokens"), std::string::npos);
  World adapter;
  EXPECT_NE(adapter.adapters(1, 100).add(0, 1, 1, 0).error().find("does not hold adapter 0 (rank 100, 25 pages)"),
            std::string::npos);
  World objective;
  objective.options.metrics.slo_s = 0.001;
  EXPECT_NE(objective.add(0, 10, 1).error().find("takes 0.0011 s on an idle machine"), std::string::npos);
  World nan;
  nan.options.model.flops_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(nan.add(0, 10, 1).error().find("flops_s must be positive"), std::string::npos);
  EXPECT_NE(World().error().find("no requests"), std::string::npos);
}

TEST(Simulation, SharedPrefixesAreFoundInTheCache) {
  World world;
  world.options.scheduler.prefix_cache = true;
  world.workload.prefix_tokens = 32;
  world.add(0, 40, 2).add(100'000, 40, 2).add(200'000, 40, 2);
  world.workload.requests[0].prefix_group = world.workload.requests[1].prefix_group = 0;
  EXPECT_EQ(world.run().cached_prompt_tokens, 32);  // the third shares nothing
}

TEST(Simulation, IsTheSameEveryTime) {
  SimSpec spec;
  spec.requests = 300;
  spec.rate = 20;
  spec.tenants = 4;
  spec.adapters = 30;
  spec.faults.cancel = spec.faults.load_failure = 0.05;
  const auto run = [&] {
    const Experiment experiment = *make_experiment(spec);
    return boost::json::serialize(to_json(*simulate(experiment.options, experiment.workload), true));
  };
  EXPECT_EQ(run(), run());
}

TEST(Simulation, ThroughputDoesNotDependOnRegisteredAdapters) {
  const auto throughput = [](int64_t adapters) {
    SimSpec spec;
    (*find_suite("slora-s1-a100"))->apply(spec);
    spec.adapters = adapters;
    const Experiment experiment = *make_experiment(spec);
    return simulate(experiment.options, experiment.workload)->drained_requests_per_s;
  };
  // S-LoRA's own figures fall by 5 % from 5 to 2,000 adapters (Table 3, S1).
  EXPECT_GE(throughput(2000) / throughput(5), 0.97);
}

TEST(Fuzz, RandomSchedulesKeepEveryInvariant) {
  int64_t preemptions = 0, fair_preemptions = 0, failed = 0, cancelled = 0, evictions = 0, merged_steps = 0,
          refused = 0, given_back = 0, alone = 0, large = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Experiment experiment = *fuzz_experiment(seed, {});
    const Result<SimResult> result = simulate(experiment.options, experiment.workload);
    ASSERT_TRUE(result.ok()) << "seed " << seed << ": " << result.status().message();
    const auto pages = [](const SimAdapter& adapter) { return adapter.pages; };
    const std::vector<SimAdapter>& adapters = experiment.options.adapters;
    large += !adapters.empty() && 3 * std::ranges::max(adapters, {}, pages).pages > experiment.options.num_pages;
    preemptions += result->preemptions;
    fair_preemptions += result->fair_preemptions;
    failed += result->failed;
    cancelled += result->cancelled;
    evictions += result->adapter_evictions;
    merged_steps += result->merges.num_merged_steps;
    refused += result->merges.num_refused;
    given_back += result->merges.num_given_back;
    alone += result->merges.num_exclusive_steps;
  }
  // The seeds reach the rare paths.
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(fair_preemptions, 5);
  EXPECT_GT(failed, 100);
  EXPECT_GT(cancelled, 100);
  EXPECT_GT(evictions, 100);
  EXPECT_GT(merged_steps, 1000);
  EXPECT_GT(refused, 10);
  EXPECT_GT(given_back, 10);
  EXPECT_GT(alone, 100);
  EXPECT_GT(large, 30) << "adapters with whole matrices, of a third of the pool and more";
}

TEST(Simulation, AShareOfTheAdaptersHasWholeMatrices) {
  const CostModel model = *find_cost_model("a10g-7b");
  const int64_t rank = 8;
  const double bytes = 10.5 * model.page_bytes();
  int64_t with = 0;
  for (const SimAdapter& adapter : make_adapters(model, 40, std::span(&rank, 1), 0.25, bytes)) {
    const bool has = adapter.pages == model.pages_of_adapter(rank) + 11;
    EXPECT_TRUE(has || adapter.pages == model.pages_of_adapter(rank));
    EXPECT_EQ(adapter.bytes, model.adapter_bytes(rank) + (has ? bytes : 0));
    with += has;
  }
  EXPECT_EQ(with, 10);
}

TEST(Fuzz, LoadsAheadDoNotStarveTheOneThatRuns) {
  // Found by a seed: the only running request needed a page, adapters loading for others held them, and it started over
  // each time.
  const Result<SimResult> result = fuzz_one(8135, [](SimOptions& options, Rng&) { options.merging = Merging::kNever; });
  EXPECT_TRUE(result.ok()) << result.status().message();
}

TEST(Fuzz, ThoseKeptOutTakeNothingFromTheOneThatKeepsThemOut) {
  // Found by a seed: the adapter that was to run alone lacked the pages of a load under way, a load for those it kept
  // out evicted it, and so on in turn.
  const Result<SimResult> result = fuzz_one(5797, {});
  EXPECT_TRUE(result.ok()) << result.status().message();
}

TEST(Fuzz, WhoWasKeptOutRunsWhenMergedPagesAreGivenBackMeanwhile) {
  // Found by a seed: the only request of the merged adapter lost its pages while the step was planned, and nobody else
  // was asked.
  const Result<SimResult> result = fuzz_one(1486, {});
  EXPECT_TRUE(result.ok()) << result.status().message();
}

TEST(Fuzz, BrokenInvariantsAreFound) {
  // A bypass that FCFS never commits would be reported: with a limit below zero every beginning is one.
  Experiment experiment = *fuzz_experiment(1, {});
  experiment.options.max_bypass = -1;
  const Result<SimResult> result = simulate(experiment.options, experiment.workload);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInternal);
  EXPECT_NE(result.status().message().find("earlier ones of its tenant"), std::string::npos);
}

}  // namespace
}  // namespace lk::sim
