// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/run_config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "lk/federated/dirichlet.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class FederatedConfigTest : public ::testing::Test {
 protected:
  FederatedConfigTest() {
    for (const char* name : {"phone-2.jsonl", "phone-1.jsonl", "desk.jsonl"}) dir_.write(name, "{}\n");
  }
  std::string base_file(const std::string& more = "") const {
    return fmt::format("base: model\nrounds: 4\nclients: {{data: \"{}/*.jsonl\"}}\ntrain: {{steps: 2}}\n{}",
                       dir_.path(), more);
  }
  Result<FederatedConfig> parse(const std::string& yaml) const {
    dir_.write("run.yaml", yaml);
    return load_federated_config(dir_.file("run.yaml"));
  }
  void refused(const std::string& yaml, const std::string& part) const {
    const auto config = parse(yaml);
    ASSERT_FALSE(config.ok()) << yaml;
    EXPECT_THAT(config.status().message(), HasSubstr(part));
    EXPECT_THAT(config.status().message(), HasSubstr("run.yaml"));
  }
  testing::TempDir dir_;
};

TEST_F(FederatedConfigTest, ClientsAreFilesAndRanksGoByTheirNames) {
  const auto config =
      parse(base_file("rule: {name: flora}\nranks: {\"phone-1\": 2, \"phone-*\": 4}\nadapter: {rank: 8, alpha: 16}\n"))
          .value();
  ASSERT_EQ(config.clients.size(), 3u);
  EXPECT_EQ(config.clients[0].name, "desk");
  EXPECT_EQ(config.per_round, 3);
  EXPECT_EQ(config.rank_of("phone-1"), 2);
  EXPECT_EQ(config.rank_of("phone-2"), 4);
  EXPECT_EQ(config.rank_of("desk"), 8);
  EXPECT_EQ(config.scaling(), 2);
}

TEST_F(FederatedConfigTest, WhatCannotBeIsRefusedByKey) {
  refused(base_file("ruel: {name: flora}\n"), "ruel");
  refused(base_file("rule: {name: fedsgd}\n"), "fedavg");
  refused(base_file("clients: {}\n"), "clients");
  refused("base: m\nrounds: 1\ntrain: {steps: 1}\n", "clients.data is missing");
  refused(fmt::format("base: m\nclients: {{data: \"{}/no-*\"}}\ntrain: {{steps: 1}}\n", dir_.path()), "no file");
  refused(fmt::format("rounds: 1\nclients: {{data: \"{}/*.jsonl\"}}\ntrain: {{steps: 1}}\n", dir_.path()),
          "base is missing");
  refused(fmt::format("base: m\nclients: {{data: \"{}/*.jsonl\"}}\n", dir_.path()), "train.steps is missing");
  refused(base_file("ranks: {desk: 2}\n"), "flora and flex");
  refused(base_file("rule: {name: flora}\nranks: {\"a/b\": 2}\n"), "matches no client");
  refused(base_file("rule: {name: slora, stage1_rounds: 5}\n"), "stage1_rounds is 5");
  refused(base_file("rule: {trim: 0.5}\n"), "trim");
  // What would change nothing.
  for (const char* key :
       {"trim: 0.1", "residual_rank: 4", "stage1_rounds: 2", "density: 0.1", "stage1_lr: 0.1", "keep_sparse: true"})
    refused(base_file(fmt::format("rule: {{name: fedavg, {}}}\n", key)),
            fmt::format("rule.{}", std::string(key).substr(0, std::string(key).find(':'))));
  refused(base_file("rule: {name: slora, trim: 0.1}\n"), "is for trimmed, and the rule is slora");
  refused(base_file("rule: {name: flex, residual_rank: 2}\n"), "is for flora and fedex");
  refused(base_file("rule: {name: flora}\nranks: {\"*\": 4, desk: 2}\n"),
          "an earlier pattern matches every client that \"desk\" does");
  refused(base_file("eval: {every: 2}\n"), "eval.every");
  for (const char* key : {"kind: dora", "lora_bias: true", "rank_pattern: {q_proj: 2}", "modules_to_save: [norm]",
                          "trainable_tokens: [1]", "init: pissa", "freeze: [A]"})
    refused(base_file(fmt::format("adapter: {{{}}}\n", key)), "adapter.");
  refused(base_file("data: {path: x}\n"), "data.path");
  std::filesystem::create_directory(dir_.file("two"));
  dir_.write("two/desk.jsonl", "{}\n");
  refused(fmt::format("base: m\nclients: {{data: [\"{0}/*.jsonl\", \"{0}/two/*.jsonl\"]}}\ntrain: {{steps: 1}}\n",
                      dir_.path()),
          "two clients are called desk");
}

TEST_F(FederatedConfigTest, TheIdentityIsWhatDecidesTheResult) {
  const std::string one = federated_identity(parse(base_file()).value());
  EXPECT_EQ(one, federated_identity(parse(base_file("threads: 3\nmemory: 4GiB\nkeep: 9\n")).value()));
  EXPECT_NE(one, federated_identity(parse(base_file("seed: 1\n")).value()));
  EXPECT_NE(one, federated_identity(parse(base_file("rule: {proximal: 0.1}\n")).value()));
}

TEST_F(FederatedConfigTest, WhereARuleHasAUseForAKeyItIsTaken) {
  for (const char* rule :
       {"{name: trimmed, trim: 0.1}", "{name: flora, residual_rank: 4}", "{name: fedex, residual_rank: 4}",
        "{name: slora, stage1_rounds: 2, density: 0.1, stage1_lr: 0.1, keep_sparse: true}"}) {
    const auto config = parse(base_file(fmt::format("rule: {}\n", rule)));
    ASSERT_TRUE(config.ok()) << config.status().message();
    // And what clients are given of it says the same.
    std::string text = federated_identity(*config);
    const auto again = parse_federated_config(text.insert(1, "\"base\":\"b\","), "round file");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(federated_identity(*again), federated_identity(*config));
  }
}

TEST_F(FederatedConfigTest, PrivacyIsRefusedWhereItWouldBeNone) {
  const auto with = [&](const std::string& privacy, const std::string& more = "") {
    return base_file(fmt::format("privacy: {{{}}}\n{}", privacy, more));
  };
  for (const auto& [rule, name] : kFederatedRules) {
    const auto config = parse(with("clip: 1, noise: 1.5, max_epsilon: 8", fmt::format("rule: {{name: {}}}\n", name)));
    const bool linear = rule == FederatedRule::kFedAvg || rule == FederatedRule::kFfa ||
                        rule == FederatedRule::kRoLora || rule == FederatedRule::kSlora;
    ASSERT_EQ(config.ok(), linear) << name;
    if (!linear) {
      EXPECT_THAT(config.status().message(), AllOf(HasSubstr("run.yaml"), HasSubstr("not linear"), HasSubstr(name)));
    }
    if (!linear) continue;
    std::string text = federated_identity(*config);
    const auto again = parse_federated_config(text.insert(1, "\"base\":\"b\","), "round file");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->privacy.noise, 1.5);
    EXPECT_EQ(again->privacy.max_epsilon, 8);
  }
  refused(with("clip: 1"), "privacy.noise is missing");
  refused(with("noise: 1"), "privacy.noise needs privacy.clip");
  refused(with("clip: 1, noise: 1, delta: 0.4"), "delta");
  refused(with("clip: 1, noise: 0.01"), "noise");
  refused(with("clip: 1, noise: 1, sampling: uniform"), "poisson");
  const std::string clients =
      fmt::format("base: m\nrounds: 1\ntrain: {{steps: 1}}\nclients: {{data: \"{}/*.jsonl\", ", dir_.path());
  refused(clients + "max_norm: 3}\nprivacy: {clip: 1, noise: 1}\n", "clients.max_norm");
  refused(clients + "quorum: 2}\nprivacy: {clip: 1, noise: 1, sampling: poisson}\n", "clients.quorum");
  refused(clients + "retries: 2}\nprivacy: {clip: 1, noise: 1, sampling: poisson}\n", "clients.retries");
  EXPECT_EQ(parse(with("clip: 1, noise: 1, sampling: poisson"))->quorum, 0);
}

class DirichletTest : public ::testing::Test {
 protected:
  DirichletTest() {
    for (const char task : {'a', 'b', 'c'}) {
      std::string lines;
      for (int n = 0; n < 200; ++n) lines += fmt::format("{{\"{}\": {}}}\n", task, n);
      dir_.write(fmt::format("{}.jsonl", task), lines + "\n  \n");
      files_.push_back(dir_.file(fmt::format("{}.jsonl", task)));
    }
  }
  // Mean share of a client's largest class.
  static double purity(const DirichletSplit& split) {
    double sum = 0;
    for (const auto& counts : split.counts) {
      double total = 0, largest = 0;
      for (const int64_t count : counts) {
        total += static_cast<double>(count);
        largest = std::max(largest, static_cast<double>(count));
      }
      sum += largest / total;
    }
    return sum / static_cast<double>(split.counts.size());
  }
  testing::TempDir dir_;
  std::vector<std::string> files_;
};

TEST_F(DirichletTest, EveryRecordGoesToOneClientAndAlphaDecidesHowMixed) {
  double last = 1.01;
  for (const double alpha : {0.05, 1.0, 100.0, static_cast<double>(INFINITY)}) {
    const auto split =
        split_by_dirichlet(files_, {.num_clients = 6, .alpha = alpha, .min_examples = 5, .seed = 3}).value();
    std::multiset<std::string> all;
    for (size_t client = 0; client < 6; ++client) {
      int64_t sum = 0;
      for (const int64_t count : split.counts[client]) sum += count;
      EXPECT_EQ(sum, std::ssize(split.clients[client]));
      EXPECT_GE(sum, 5);
      all.insert(split.clients[client].begin(), split.clients[client].end());
    }
    EXPECT_EQ(all.size(), 600u);
    EXPECT_EQ(all.count("{\"a\": 0}"), 1u);
    EXPECT_LT(purity(split), last) << alpha;
    last = purity(split);
  }
  EXPECT_NEAR(last, 1.0 / 3, 0.02);
}

TEST_F(DirichletTest, EqualSeedsGiveEqualFilesAndNothingIsOverwritten) {
  const DirichletOptions options{.num_clients = 4, .alpha = 0.3, .seed = 8};
  const auto split = split_by_dirichlet(files_, options).value();
  EXPECT_EQ(split.clients, split_by_dirichlet(files_, options)->clients);
  ASSERT_TRUE(write_split(split, dir_.file("out")).ok());
  EXPECT_EQ(write_split(split, dir_.file("out")).code(), StatusCode::kAlreadyExists);
  std::string first;
  for (const std::string& line : split.clients[0]) first += line + "\n";
  EXPECT_EQ(dir_.read("out/client-00.jsonl"), first);
  EXPECT_THAT(split_by_dirichlet(files_, {.num_clients = 6, .alpha = 0}).status().message(), HasSubstr("above 0"));
  EXPECT_THAT(split_by_dirichlet(files_, {.num_clients = 6, .min_examples = 200}).status().message(),
              HasSubstr("too few"));
  EXPECT_THAT(split_by_dirichlet(files_, {.num_clients = 6, .alpha = 1e-3, .min_examples = 90}).status().message(),
              HasSubstr("raise --alpha"));
}

}  // namespace
}  // namespace lk
