// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/workload.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "lk/sim/spec.h"
#include "lk/sim/streams.h"

namespace lk::sim {
namespace {

using Kind = Phase::Kind;

std::vector<double> times_of(const Phase& phase) {
  Rng rng(7);
  return arrivals_of(phase, rng, 1'000'000);
}

TEST(Arrivals, ConstantIsEvenlySpacedFromTheBeginning) {
  const std::vector<double> times = times_of({.kind = Kind::kConstant, .begin_s = 10, .end_s = 12, .rate = 2});
  EXPECT_EQ(times, (std::vector<double>{10, 10.5, 11, 11.5}));
}

TEST(Arrivals, GammaGapsHaveTheirMeanAndSpread) {
  for (const double cv : {0.5, 1.0, 4.0}) {
    const std::vector<double> times = times_of({.kind = Kind::kGamma, .end_s = 20'000, .rate = 5, .cv = cv});
    double sum = 0, squares = 0;
    for (size_t i = 1; i < times.size(); ++i) {
      const double gap = times[i] - times[i - 1];
      sum += gap;
      squares += gap * gap;
    }
    const double n = static_cast<double>(times.size() - 1), mean = sum / n;
    EXPECT_NEAR(mean, 0.2, 0.01) << cv;
    EXPECT_NEAR(std::sqrt(squares / n - mean * mean) / mean, cv, 0.06 * cv) << cv;
  }
}

TEST(Arrivals, OnOffIsSilentWhileOff) {
  const std::vector<double> times = times_of({.kind = Kind::kOnOff, .end_s = 30, .rate = 1, .on_s = 5, .off_s = 10});
  EXPECT_EQ(times, (std::vector<double>{0, 1, 2, 3, 4, 15, 16, 17, 18, 19}));
}

TEST(Arrivals, RampHasTheIntegralOfItsRate) {
  const std::vector<double> times = times_of({.kind = Kind::kRamp, .end_s = 100, .rate = 0, .end_rate = 2});
  ASSERT_EQ(times.size(), 100u);
  EXPECT_NEAR(times[25], 50, 1e-9);  // a quarter of the requests in the first half
}

TEST(Popularity, FollowsItsLaw) {
  Rng rng(3);
  const auto share_of_first = [&](Popularity popularity, int64_t n) {
    popularity.prepare(n);
    int hits = 0;
    for (int i = 0; i < 20'000; ++i) hits += popularity.pick(rng) == 0;
    return hits / 20'000.0;
  };
  // (1/n)^alpha: S-LoRA's power law; alpha = 1 is uniform.
  EXPECT_NEAR(share_of_first(Popularity::power(0.1), 200), 0.589, 0.01);
  EXPECT_NEAR(share_of_first(Popularity::power(0.3), 200), 0.204, 0.01);
  EXPECT_NEAR(share_of_first(Popularity::uniform(), 4), 0.25, 0.01);
  EXPECT_NEAR(share_of_first(Popularity::zipf(1), 3), 6.0 / 11, 0.01);
}

TEST(Lengths, ParseAndRefuse) {
  Rng rng(1);
  EXPECT_EQ(parse_length_dist("7")->sample(rng), 7);
  const Result<LengthDist> range = parse_length_dist("8:511");
  ASSERT_TRUE(range.ok());
  for (int i = 0; i < 1000; ++i) {
    const int32_t length = range->sample(rng);
    EXPECT_TRUE(length >= 8 && length <= 511);
  }
  std::vector<int32_t> values;
  for (int i = 0; i < 2001; ++i) values.push_back(parse_length_dist("lognormal:100:0.5:4000")->sample(rng));
  std::nth_element(values.begin(), values.begin() + 1000, values.end());
  EXPECT_NEAR(values[1000], 100, 8);
  for (const char* bad : {"0", "5:3", "1:2:3", "x", "lognormal:1:2", "lognormal:nan:1:5", "file:/no/such/file"})
    EXPECT_FALSE(parse_length_dist(bad).ok()) << bad;
}

TEST(Workload, IsSortedAndDependsOnTheSeedOnly) {
  SimSpec spec;
  spec.tenants = 3;
  spec.requests = 500;
  const auto make = [&](uint64_t seed) {
    spec.seed = seed;
    return make_experiment(spec)->workload.requests;
  };
  const std::vector<SimRequest> a = make(1), b = make(1), c = make(2);
  ASSERT_EQ(a.size(), 500u);
  bool differs = false;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i].arrival == b[i].arrival && a[i].input == b[i].input && a[i].adapter == b[i].adapter);
    EXPECT_TRUE(i == 0 || a[i - 1].arrival <= a[i].arrival);
    EXPECT_EQ(a[i].tenant, a[i].adapter % 3);
    differs |= a[i].arrival != c[i].arrival;
  }
  EXPECT_TRUE(differs);
}

TEST(Workload, PopularityShiftsAndTheBaseHasItsShare) {
  SimSpec spec;
  spec.adapters = 100;
  spec.popularity = Popularity::zipf(1.5);
  spec.rate = 100;
  spec.duration_s = 60;
  spec.shift_s = 20;
  spec.base_share = 0.25;
  const Result<Experiment> experiment = make_experiment(spec);
  ASSERT_TRUE(experiment.ok()) << experiment.status().message();
  std::map<AdapterId, int> counts[3];
  for (const SimRequest& request : experiment->workload.requests)
    ++counts[static_cast<size_t>(request.arrival / 20'000'000)][request.adapter];
  const std::array<AdapterId, 3> popular{0, 61, 23};  // 0, 0.618 and 0.236 of the way
  for (size_t period = 0; period < 3; ++period) {
    EXPECT_NEAR(counts[period][kBaseModel], 500, 80) << period;
    for (const auto& [adapter, count] : counts[period]) {
      const bool in_order =
          adapter == kBaseModel || adapter == popular[period] || count < counts[period][popular[period]];
      EXPECT_TRUE(in_order) << period << " " << adapter;
    }
  }
  spec.shift_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(make_experiment(spec).status().message().find("popularity shifts"), std::string::npos);
}

TEST(Workload, TurnsOfAConversationExtendEachOther) {
  SimSpec spec;
  spec.adapters = 10;
  spec.rate = 20;
  spec.duration_s = 200;
  spec.input = LengthDist::uniform(10, 20);
  spec.output = LengthDist::fixed(5);
  spec.turns = 4;
  spec.think_s = 2;
  const Result<Experiment> experiment = make_experiment(spec);
  ASSERT_TRUE(experiment.ok()) << experiment.status().message();
  std::map<int32_t, std::vector<SimRequest>> conversations;
  for (const SimRequest& request : experiment->workload.requests)
    conversations[request.conversation].push_back(request);
  EXPECT_FALSE(conversations.contains(-1));
  double pauses = 0;
  for (const auto& [id, turns] : conversations)
    for (size_t i = 1; i < turns.size(); ++i) {
      EXPECT_EQ(turns[i].adapter, turns[0].adapter);
      const int32_t added = turns[i].input - turns[i - 1].input - turns[i - 1].output;
      EXPECT_TRUE(added >= 10 && added <= 20) << added;
      pauses += static_cast<double>(turns[i].arrival - turns[i - 1].arrival) * 1e-6;
    }
  const double requests = static_cast<double>(experiment->workload.requests.size()),
               begun = static_cast<double>(conversations.size());
  EXPECT_NEAR(requests / begun, 4, 0.3);
  EXPECT_NEAR(pauses / (requests - begun), 2, 0.15);
  spec.turns = 0.5;
  EXPECT_NE(make_experiment(spec).status().message().find("at least one turn"), std::string::npos);
}

TEST(Workload, RefusesNonsense) {
  WorkloadSpec spec{.streams = {{.tenant = 0, .phases = {{.end_s = 1, .rate = 10}}}}};
  EXPECT_TRUE(generate(spec).ok());
  const auto error = [](WorkloadSpec changed) { return generate(changed).status().message(); };
  WorkloadSpec bad = spec;
  for (const double weight : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    bad.tenants[0].weight = weight;
    EXPECT_NE(error(bad).find("weight must be positive"), std::string::npos) << weight;
  }
  bad = spec;
  bad.streams[0].phases[0].rate = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(error(bad).find("rate must be positive"), std::string::npos);
  bad = spec;
  bad.max_tokens_factor = 0.5;
  EXPECT_NE(error(bad).find("at least 1"), std::string::npos);
}

TEST(Suites, HaveTheirPublishedRates) {
  for (const Suite& suite : suites()) {
    SimSpec spec;
    suite.apply(spec);
    const Result<Experiment> experiment = make_experiment(spec);
    ASSERT_TRUE(experiment.ok()) << suite.name << experiment.status().message();
  }
  SimSpec spec;
  (*find_suite("vtc-shift"))->apply(spec);
  std::map<int32_t, int> counts;
  const Result<Experiment> shift = make_experiment(spec);
  for (const SimRequest& request : shift->workload.requests) ++counts[request.tenant];
  // 0.5/s in 3 of 5 minutes, then 1/s and 0.5/s for 5 minutes each; and 2, 1, 1.5.
  EXPECT_EQ(counts[0], 90 + 300 + 150);
  EXPECT_EQ(counts[1], 600 + 300 + 450);
  EXPECT_EQ(find_suite("vtc-nothing").status().code(), StatusCode::kNotFound);
}

TEST(Streams, AddUpByTenant) {
  SimSpec spec;
  ASSERT_TRUE(add_stream(spec, "tenant=a,rate=2,to=10,input=16,output=4").ok());
  ASSERT_TRUE(add_stream(spec, "tenant=a,rate=1,from=10,to=20,input=16,output=4").ok());
  ASSERT_TRUE(add_stream(spec, "tenant=b,rate=1,kind=ramp,end-rate=3,to=10,weight=2").ok());
  const Result<Experiment> experiment = make_experiment(spec);
  ASSERT_TRUE(experiment.ok());
  EXPECT_EQ(experiment->workload.tenants.size(), 2u);
  EXPECT_EQ(experiment->workload.tenants[1].weight, 2);
  EXPECT_EQ(experiment->workload.requests.size(), 20u + 10u + 20u);
  for (const char* bad : {"rate", "speed=1", "weight=0", "weight=nan", "kind=sometimes"})
    EXPECT_FALSE(add_stream(spec, bad).ok()) << bad;
}

// --- traces

TEST(Trace, ReadsTheAzureForm) {
  const Result<Workload> trace = parse_trace(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 "
      "18:15:50.9951690,396,109\r\n2023-11-17 00:00:00.5,1,1\n",
      0, 1, 1);
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->requests.size(), 3u);
  EXPECT_EQ(trace->requests[0].arrival, 0);
  EXPECT_NEAR(static_cast<double>(trace->requests[1].arrival), 4'314'579, 1);
  EXPECT_EQ(trace->requests[1].input, 396);
  EXPECT_EQ(trace->requests[1].output, 109);
  EXPECT_EQ(trace->requests[1].adapter, kBaseModel);
  EXPECT_NEAR(static_cast<double>(trace->requests[2].arrival), 20'653'819'410.0, 1);
}

TEST(Trace, ReadsAdaptersAndTenants) {
  const Result<Workload> trace = parse_trace(
      "tenant,time,prompt_tokens,output_tokens,lora\nacme,0,5,6,french\nbolt,10,7,8,\nacme,30,1,1,german\n", 0, 2, 1.5);
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  EXPECT_EQ(trace->num_adapters, 2);
  EXPECT_EQ(trace->tenants[1].name, "bolt");
  EXPECT_EQ(trace->requests[1].adapter, kBaseModel);
  EXPECT_EQ(trace->requests[2].adapter, 1);
  EXPECT_EQ(trace->requests[2].tenant, 0);
  EXPECT_EQ(trace->requests[2].arrival, 15'000'000);
  EXPECT_EQ(trace->requests[0].max_tokens, 9);
}

TEST(Trace, ErrorsNameTheLine) {
  const auto error = [](const std::string& text, int64_t adapters = 0) {
    return parse_trace(text, adapters, 1, 1).status().message();
  };
  const std::string head = "time,context,generated,adapter\n";
  EXPECT_EQ(error(head + "1,2,3,0\n0.5,2,3,0\n"), "line 3: out of order: it arrives before the line above");
  EXPECT_EQ(error(head + "1,2,3,0\n2,2,3,4\n", 4), "line 3: unknown adapter \"4\": there are 4, numbered from 0");
  EXPECT_EQ(error(head + "1,2,3,abc\n", 4), "line 2: unknown adapter \"abc\": there are 4, numbered from 0");
  EXPECT_NE(error(head + "1,0,3,0\n").find("line 2: the prompt must be a whole number"), std::string::npos);
  EXPECT_NE(error(head + "soon,2,3,0\n").find("line 2: \"soon\" is neither seconds nor"), std::string::npos);
  EXPECT_NE(error(head + "1,2,3\n").find("line 2: 3 columns instead of 4"), std::string::npos);
  EXPECT_NE(error("time,generated\n").find("header needs"), std::string::npos);
  EXPECT_EQ(error(head), "the trace has no requests");
}

}  // namespace
}  // namespace lk::sim
