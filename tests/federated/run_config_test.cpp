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
