// SPDX-License-Identifier: Apache-2.0
// Identities of the rules: what must be equal whatever the values are.
#include "lk/federated/rules.h"

#include <gmock/gmock.h>

#include <cmath>

#include "lk/base/rng.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using R = FederatedRule;

const ModuleId kFirst = ModuleId::of(0, Proj::kQ), kSecond = ModuleId::of(1, Proj::kDown);

DeltaFactors random_factors(Rng& rng, int64_t rank, int64_t in, int64_t out) {
  DeltaFactors f{.rank = rank, .in = in, .out = out, .a = {}, .b = {}};
  for (int64_t i = 0; i < rank * in; ++i) f.a.push_back(static_cast<float>(rng.normal()));
  for (int64_t i = 0; i < out * rank; ++i) f.b.push_back(static_cast<float>(rng.normal()));
  return f;
}
ClientFactors client(const std::string& name, double weight, int64_t rank, double scaling, uint64_t seed) {
  Rng rng(seed);
  ClientFactors made{name, weight, {}};
  made.factors[kFirst] = {random_factors(rng, rank, 12, 10), scaling};
  made.factors[kSecond] = {random_factors(rng, rank, 7, 12), scaling};
  return made;
}
std::vector<ClientFactors> alike() {
  return {client("c", 1, 3, 2, 1), client("a", 5, 3, 2, 2), client("b", 2, 3, 2, 3)};
}

using Dense = std::map<ModuleId, std::vector<double>>;
void add_dense(Dense& sum, const ModuleFactors& factors, double weight) {
  for (const auto& [module, each] : factors) {
    const DeltaFactors& f = each.factors;
    std::vector<double>& to = sum[module];
    to.resize(static_cast<size_t>(f.out * f.in));
    for (int64_t o = 0; o < f.out; ++o)
      for (int64_t k = 0; k < f.rank; ++k)
        for (int64_t i = 0; i < f.in; ++i)
          to[static_cast<size_t>(o * f.in + i)] += weight * each.scaling *
                                                   static_cast<double>(f.b[static_cast<size_t>(o * f.rank + k)]) *
                                                   static_cast<double>(f.a[static_cast<size_t>(k * f.in + i)]);
  }
}
Dense dense(const ModuleFactors& factors) {
  Dense result;
  add_dense(result, factors, 1);
  return result;
}
Dense mean_change(const std::vector<ClientFactors>& clients) {
  double total = 0;
  for (const ClientFactors& c : clients) total += c.weight;
  Dense mean;
  for (const ClientFactors& c : clients) add_dense(mean, c.factors, c.weight / total);
  return mean;
}
// ||x - y|| / ||y|| over all modules.
double distance(const Dense& x, const Dense& y) {
  double difference = 0, norm = 0;
  EXPECT_EQ(x.size(), y.size());
  for (const auto& [module, values] : y)
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(x.at(module)[i] - values[i], 2);
      norm += std::pow(values[i], 2);
    }
  return std::sqrt(difference / norm);
}
Dense whole(const Aggregate& result) {
  Dense sum = dense(result.global);
  add_dense(sum, result.residual, 1);
  return sum;
}
Aggregate run(std::vector<ClientFactors> clients, RuleOptions options) {
  auto result = aggregate_factors(std::move(clients), options);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return std::move(*result);
}

TEST(FederatedRules, OneClientStaysWhatItTrained) {
  const std::vector<ClientFactors> one{client("a", 4, 3, 2, 9)};
  for (const auto& [rule, name] : kFederatedRules) {
    const Aggregate result = run(one, {.rule = rule});
    EXPECT_LT(distance(whole(result), mean_change(one)), 1e-6) << name;
    EXPECT_LT(result.report.error, 1e-6) << name;
  }
}

TEST(FederatedRules, FloraFlexAndFedexAreTheMeanOfTheChanges) {
  const Dense want = mean_change(alike());
  for (const RuleOptions& options :
       {RuleOptions{.rule = R::kFlora}, {.rule = R::kFlex, .max_rank = 9}, {.rule = R::kFedEx}}) {
    const Aggregate result = run(alike(), options);
    EXPECT_LT(distance(whole(result), want), 1e-6) << to_string(options.rule);
    EXPECT_LT(result.report.error, 1e-6);
  }
}

// alpha = 16 at ranks 2, 4 and 8 means scalings of 8, 4 and 2: the mean without them is another adapter.
TEST(FederatedRules, RanksAndScalingsMayDifferWhereChangesAreAveraged) {
  const std::vector<ClientFactors> mixed{client("a", 1, 2, 8, 1), client("b", 3, 4, 4, 2), client("c", 2, 8, 2, 3)};
  for (const RuleOptions& options : {RuleOptions{.rule = R::kFlora}, {.rule = R::kFlex, .max_rank = 14}})
    EXPECT_LT(distance(whole(run(mixed, options)), mean_change(mixed)), 1e-6);
  for (const auto& [rule, name] : kFederatedRules) {
    if (takes_any_ranks(rule)) continue;
    EXPECT_THAT(aggregate_factors(mixed, {.rule = rule}).status().message(),
                AllOf(HasSubstr("a and b"), HasSubstr("ranks 2 and 4"), HasSubstr(name)));
  }
  std::vector<ClientFactors> scaled{client("a", 1, 3, 2, 1), client("b", 1, 3, 4, 2)};
  EXPECT_THAT(aggregate_factors(scaled, {.rule = R::kFedAvg}).status().message(), HasSubstr("scale"));
}

TEST(FederatedRules, MeansOfFactorsAreExactWhenOneOfThemIsCommon) {
  for (const R rule : {R::kFfa, R::kRoLora, R::kFedAvg}) {
    std::vector<ClientFactors> clients = alike();
    for (ClientFactors& c : clients)
      for (auto& [module, each] : c.factors) each.factors.a = clients[0].factors.at(module).factors.a;
    const Aggregate result = run(clients, {.rule = rule});
    EXPECT_LT(result.report.error, 1e-6);
    EXPECT_LT(distance(dense(result.global), mean_change(clients)), 1e-6);
    EXPECT_EQ(result.global.at(kFirst).factors.a, clients[0].factors.at(kFirst).factors.a) << "not one bit of rounding";
  }
  std::vector<ClientFactors> common_b = alike();
  for (ClientFactors& c : common_b)
    for (auto& [module, each] : c.factors) each.factors.b = common_b[0].factors.at(module).factors.b;
  EXPECT_LT(run(common_b, {.rule = R::kRoLora}).report.error, 1e-6);
  EXPECT_FALSE(aggregate_factors(common_b, {.rule = R::kFfa}).ok());
  EXPECT_THAT(aggregate_factors(alike(), {.rule = R::kRoLora}).status().message(), HasSubstr("not the same"));
}

TEST(FederatedRules, TheErrorOfTheMeansIsSaid) {
  const Aggregate result = run(alike(), {.rule = R::kFedAvg});
  const double want = distance(dense(result.global), mean_change(alike()));
  EXPECT_GT(want, 0.1);
  EXPECT_NEAR(result.report.error, want, 1e-6);
  // FedEx's residual is exactly that, and cut to fewer ranks it is the closest.
  double last = want;
  for (const int64_t rank : {1, 3, 6}) {
    const Aggregate fedex = run(alike(), {.rule = R::kFedEx, .residual_rank = rank});
    EXPECT_NEAR(fedex.report.error, std::sqrt(fedex.report.dropped / fedex.report.energy), 1e-5);
    EXPECT_LT(fedex.report.error, last);
    last = fedex.report.error;
  }
}

TEST(FederatedRules, FlexSaysWhatItCutsOff) {
  const Aggregate result = run(alike(), {.rule = R::kFlex, .max_rank = 2});
  EXPECT_EQ(result.global.at(kFirst).factors.rank, 2);
  EXPECT_NEAR(result.report.error, std::sqrt(result.report.dropped / result.report.energy), 1e-5);
  EXPECT_NEAR(result.report.error, distance(dense(result.global), mean_change(alike())), 1e-5);
}

TEST(FederatedRules, WhoComesFirstIsNotInTheResult) {
  std::vector<ClientFactors> clients = alike();
  for (const auto& [rule, name] : kFederatedRules) {
    if (rule == R::kFfa || rule == R::kRoLora) continue;
    const Aggregate want = run(clients, {.rule = rule});
    std::vector<ClientFactors> other{clients[2], clients[0], clients[1]};
    const Aggregate got = run(other, {.rule = rule});
    for (const auto& [module, each] : want.global) {
      EXPECT_EQ(got.global.at(module).factors.a, each.factors.a) << name;
      EXPECT_EQ(got.global.at(module).factors.b, each.factors.b) << name;
    }
  }
}

TEST(FederatedRules, MedianAndTrimmedMeanForgetOneWildClient) {
  std::vector<ClientFactors> clients;
  for (int n = 0; n < 5; ++n) clients.push_back(client(std::string(1, static_cast<char>('a' + n)), 1 + n, 2, 1, 7));
  for (ClientFactors& c : clients)
    for (auto& [module, each] : c.factors)
      for (float& v : each.factors.b) v += 0.01f * static_cast<float>(c.weight);
  std::vector<ClientFactors> attacked = clients;
  for (auto& [module, each] : attacked[1].factors)
    for (float& v : each.factors.b) v = -1e6f;
  for (const R rule : {R::kMedian, R::kTrimmed}) {
    const Dense good = dense(run(clients, {.rule = rule}).global), bad = dense(run(attacked, {.rule = rule}).global);
    EXPECT_LT(distance(bad, good), 0.05);
  }
  EXPECT_GT(
      distance(dense(run(attacked, {.rule = R::kFedAvg}).global), dense(run(clients, {.rule = R::kFedAvg}).global)),
      100);
}

TEST(FederatedRules, StatisticsOfFewValues) {
  const std::vector<std::vector<float>> rows{{5, 1}, {1, 2}, {2, 9}, {4, 3}};
  const std::vector<std::span<const float>> four(rows.begin(), rows.end());
  EXPECT_EQ(median_of(four), (std::vector<float>{3, 2.5}));
  EXPECT_EQ(median_of(std::span(four).first(3)), (std::vector<float>{2, 2}));
  EXPECT_EQ(median_of(std::span(four).first(2)), (std::vector<float>{3, 1.5}));
  EXPECT_EQ(median_of(std::span(four).first(1)), (std::vector<float>{5, 1}));
  for (size_t n = 1; n <= 40; ++n) {
    std::vector<std::vector<float>> numbers;
    for (size_t i = 0; i < n; ++i) numbers.push_back({static_cast<float>((i * 7) % n == 0 && i > 0 ? i : (i * 7) % n)});
    std::vector<float> sorted;
    for (const auto& number : numbers) sorted.push_back(number[0]);
    std::ranges::sort(sorted);
    const std::vector<std::span<const float>> values(numbers.begin(), numbers.end());
    EXPECT_EQ(median_of(values)[0], (sorted[(n - 1) / 2] + sorted[n / 2]) / 2) << n;
  }
  EXPECT_EQ(trimmed_mean(four, 0.25), (std::vector<float>{3, 2.5}));
  EXPECT_EQ(trimmed_mean(four, 0.24), (std::vector<float>{3, 2.5}));  // one at least
  EXPECT_EQ(trimmed_mean(four, 0), (std::vector<float>{3, 3.75}));
  const std::vector<double> weights{1, 3, 0.5, 0.5};
  EXPECT_EQ(weighted_mean(four, weights), (std::vector<float>{2.2f, 2.6f}));
}

TEST(FederatedRules, BadClientsAreNamed) {
  const auto refused = [](std::vector<ClientFactors> clients, const char* who, const char* why) {
    for (const R rule : {R::kFedAvg, R::kFlora}) {
      const auto result = aggregate_factors(clients, {.rule = rule});
      ASSERT_FALSE(result.ok()) << why;
      EXPECT_THAT(result.status().message(), AllOf(HasSubstr(who), HasSubstr(why)));
    }
  };
  refused({}, "", "nothing to aggregate");
  std::vector<ClientFactors> clients = alike();
  clients[0].factors.at(kSecond).factors.b[3] = std::nanf("");
  refused(clients, "c", "not finite");
  clients = alike();
  clients[0].factors.at(kFirst).factors.a[0] = INFINITY;
  refused(clients, "model.layers.0.self_attn.q_proj", "not finite");
  clients = alike();
  clients[2].client = "a";
  refused(clients, "a", "twice");
  clients = alike();
  clients[1].weight = 0;
  refused(clients, "a", "weight");
  clients = alike();
  clients[1].factors.erase(kFirst);
  refused(clients, "a and b", "same modules");
  clients = alike();
  clients[1].factors[ModuleId::of(0, Proj::kK)] = clients[1].factors.at(kFirst);
  refused(clients, "a and b", "same modules");
  clients = alike();
  Rng rng(1);
  clients[1].factors[kFirst] = {random_factors(rng, 3, 11, 10), 2};
  refused(clients, "a and b", "different shapes");
  EXPECT_THAT(aggregate_factors(alike(), {.rule = R::kTrimmed, .trim = 0.5}).status().message(), HasSubstr("trim"));
}

TEST(ModuleFactors, AdaptersComeBackAsTheyWere) {
  const ModelConfig config = load_model_config("tests/lora/fixtures/base").value();
  const auto load = [&](const std::string& name) {
    const auto base = TensorStore::open_model("tests/lora/fixtures/base").value();
    return load_adapter(name, "tests/lora/fixtures/" + name, config, base.get()).value();
  };
  const auto adapter = load("all_linear");
  const ModuleFactors factors = factors_of(*adapter).value();
  const auto back = adapter_of(factors, config, "back");
  EXPECT_EQ(back->max_rank, adapter->max_rank);
  for (size_t layer = 0; layer < adapter->layers.size(); ++layer)
    for (size_t proj = 0; proj < kNumProjs; ++proj) {
      EXPECT_EQ(testing::to_floats(back->layers[layer][proj]->a), testing::to_floats(adapter->layers[layer][proj]->a));
      EXPECT_EQ(testing::to_floats(back->layers[layer][proj]->b), testing::to_floats(adapter->layers[layer][proj]->b));
      EXPECT_EQ(back->layers[layer][proj]->scaling, adapter->layers[layer][proj]->scaling);
    }
  EXPECT_THAT(factors_of(*load("dora")).status().message(), HasSubstr("DoRA"));
}

}  // namespace
}  // namespace lk
