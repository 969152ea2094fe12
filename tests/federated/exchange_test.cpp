// SPDX-License-Identifier: Apache-2.0
// A federation by files: the same adapter bytes as the simulation, and files that are not what they should be.
#include "lk/federated/exchange.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "federated/demo_federation.h"
#include "lk/base/file.h"
#include "lk/federated/simulation.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"

namespace lk {
namespace {
using ::testing::HasSubstr;
using R = FederatedRule;

using testing::demo_base;
constexpr const char* kModel = testing::kDemoModel;

const ModelConfig& model() { return demo_base().weights->config; }

class Exchange : public ::testing::Test {
 protected:
  Exchange() { testing::write_clients(dir_, 3, 3); }
  // As a user writes it: with all that JSON must bring across.
  FederatedConfig config(const std::string& rule, const std::string& more = "") {
    return parse_federated_config(
               fmt::format(
                   "base: {}\ndtype: f32\nseed: 11\nrounds: 3\nblock_tokens: 64\nkeep: 9\n"
                   "adapter: {{rank: 2, alpha: 3, target_modules: [q_proj, down_proj], layers_to_transform: [0, 3]}}\n"
                   "clients: {{data: \"{}/c*.jsonl\", per_round: 2}}\n"
                   "train: {{steps: 2, batch_samples: 2, lr: 5.0e-3, schedule: cosine, warmup_steps: 1}}\n"
                   "rule: {}\n{}",
                   kModel, dir_.path(), rule, more),
               "run.yaml")
        .value();
  }
  std::unique_ptr<FederatedServer> server(const FederatedConfig& config) {
    return FederatedServer::create(config, model(), *demo_base().weights->checkpoint).value();
  }
  std::string data_of(const std::string& client) const { return dir_.file(client + ".jsonl"); }

  testing::TempDir dir_;
};

TEST_F(Exchange, ByFilesItIsTheSameAdapterAsInASimulation) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{name: fedavg, proximal: 0.1}", ""},
      {"{name: ffa}", "wire: bf16\n"},
      {"{name: rolora}", ""},
      {"{name: flora}", "ranks: {c0: 1, \"c*\": 3}\n"},
      {"{name: flex}", "ranks: {c0: 1}\n"},
      {"{name: fedex, residual_rank: 3}", ""},
      {"{name: slora, stage1_rounds: 2, density: 0.05, stage1_lr: 1.0e-2}", ""},
      {"{name: slora, stage1_rounds: 1, keep_sparse: true}", ""},
      {"{name: fedsa}", ""}};
  for (size_t number = 0; number < cases.size(); ++number) {
    const FederatedConfig run = config(cases[number].first, cases[number].second);
    const std::string simulated = dir_.file(fmt::format("sim{}", number)),
                      by_files = dir_.file(fmt::format("files{}", number));
    const auto simulation = Simulation::create(run, demo_base(), simulated, {}).value();
    ASSERT_TRUE(simulation->run().ok());
    for (int64_t round = 1; round <= run.rounds; ++round) {
      // Nothing is kept in memory from one round to the next.
      const auto own = server(run);
      RunDirectory files(run, by_files);
      ASSERT_TRUE(files.open(*own, model(), kModel, {}).ok());
      ASSERT_EQ(own->round(), round);
      std::vector<ClientUpdate> updates;
      for (const std::string& client : own->sample({"c0", "c1", "c2"}, 0)) {
        const std::string given = dir_.file("round.safetensors"), sent = dir_.file("update.safetensors");
        ASSERT_TRUE(write_round(*own, client, files.base_digest(), given).ok());
        const auto task = read_round(given, model());
        ASSERT_TRUE(task.ok()) << task.status().message();
        EXPECT_EQ(task->run_digest, run_digest_of(run));
        std::string first;
        for (int again = 0; again < 2; ++again) {  // killed and started again: the same bytes
          const auto update =
              train_round(*task, demo_base(), data_of(client), dir_.file(fmt::format("own{}{}", number, client)), {});
          ASSERT_TRUE(update.ok()) << update.status().message();
          ASSERT_TRUE(write_update(*update, run.wire, sent).ok());
          if (again == 0) first = read_file(sent).value();
        }
        EXPECT_EQ(read_file(sent).value(), first);
        EXPECT_LE(std::ssize(first), max_update_bytes(*own));
        const auto received = read_update(sent, max_update_bytes(*own));
        ASSERT_TRUE(received.ok()) << received.status().message();
        const Status checked = check_update(*own, files.base_digest(), *received);
        ASSERT_TRUE(checked.ok()) << checked.message();
        updates.push_back(received->update);
      }
      const auto report = own->close(updates);
      ASSERT_TRUE(report.ok()) << report.status().message();
      ASSERT_TRUE(files.save(*own, model()).ok());
      const auto adapter_of_round = [&](const std::string& directory) {
        return join_path(directory, fmt::format("rounds/checkpoint-{}", round));
      };
      if (run.rule.name == R::kFedSa) continue;  // B stays with the clients: the server's is not theirs
      EXPECT_EQ(read_file(join_path(adapter_of_round(simulated), kAdapterWeightsFile)).value(),
                read_file(join_path(adapter_of_round(by_files), kAdapterWeightsFile)).value())
          << cases[number].first << " round " << round;
    }
    if (run.rule.name != R::kFedSa) continue;
    // The common A is the same; and what c0 keeps is what the simulation kept for it.
    const auto last = [&](const std::string& directory) {
      return read_state(join_path(join_path(directory, "rounds/checkpoint-3"), kStateFile), model()).value();
    };
    const FederatedState one = last(simulated), other = last(by_files);
    for (const auto& [module, each] : one.global) EXPECT_EQ(each.factors.a, other.global.at(module).factors.a);
    EXPECT_TRUE(other.personal.empty());
  }
}

TEST_F(Exchange, FilesThatAreNotWhatTheyShouldBeAreRefused) {
  const FederatedConfig run = config("{name: fedavg}");
  const auto own = server(run);
  const std::string base = base_files_digest(kModel).value();
  const std::string given = dir_.file("round.safetensors"), sent = dir_.file("update.safetensors");
  ASSERT_TRUE(write_round(*own, "c1", base, given).ok());
  RoundFile round = read_round(given, model()).value();
  const UpdateFile good = train_round(round, demo_base(), data_of("c1"), "", {}).value();
  ASSERT_TRUE(write_update(good, run.wire, sent).ok());

  // The client's side.
  round.base_digest = "0123";
  const Status other_base = train_round(round, demo_base(), data_of("c1"), "", {}).status();
  EXPECT_EQ(other_base.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(other_base.message(), AllOf(HasSubstr("0123"), HasSubstr(base)));
  EXPECT_THAT(read_round(sent, model()).status().message(), HasSubstr("no round file"));
  EXPECT_THAT(read_update(given, INT64_MAX).status().message(), HasSubstr("no update file"));
  EXPECT_EQ(read_update(sent, 1000).status().code(), StatusCode::kResourceExhausted);
  const std::string bytes = read_file(sent).value();
  for (const size_t length : {size_t{0}, size_t{7}, size_t{200}, bytes.size() - 1}) {
    dir_.write("cut.safetensors", bytes.substr(0, length));
    EXPECT_FALSE(read_update(dir_.file("cut.safetensors"), INT64_MAX).ok()) << length;
    dir_.write("cut.safetensors", read_file(given).value().substr(0, length));
    EXPECT_FALSE(read_round(dir_.file("cut.safetensors"), model()).ok()) << length;
  }
  const auto fedsa = server(config("{name: fedsa}"));
  ASSERT_TRUE(write_round(*fedsa, "c1", base, given).ok());
  EXPECT_THAT(train_round(read_round(given, model()).value(), demo_base(), data_of("c1"), "", {}).status().message(),
              HasSubstr("--state"));

  // The server's.
  const auto refused = [&](const std::function<void(UpdateFile&)>& change, StatusCode code, const char* part) {
    UpdateFile file = good;
    change(file);
    const Status status = check_update(*own, base, file);
    EXPECT_EQ(status.code(), code) << part;
    EXPECT_THAT(status.message(), HasSubstr(part));
  };
  EXPECT_TRUE(check_update(*own, base, good).ok());
  refused([](UpdateFile& f) { f.base_digest = "abcd"; }, StatusCode::kFailedPrecondition, "another base: abcd");
  refused([](UpdateFile& f) { f.run_digest = "ef01"; }, StatusCode::kFailedPrecondition, "another run: ef01");
  refused([](UpdateFile& f) { f.update.round = 2; }, StatusCode::kFailedPrecondition, "round 2");
  refused([](UpdateFile& f) { f.update.client = "mallory"; }, StatusCode::kInvalidArgument, "no client");
  refused([](UpdateFile& f) { f.update.tensors.begin()->second[0] = std::nanf(""); }, StatusCode::kDataLoss,
          "not finite");
}

// A server must not choose what a client opens.
TEST_F(Exchange, ARunFromElsewhereNamesNoFiles) {
  const std::string good = federated_identity(config("{name: slora, density: 0.1}", "ranks: {}\n"));
  ASSERT_TRUE(parse_given_run(good, "run").ok()) << parse_given_run(good, "run").status().message();
  EXPECT_EQ(federated_identity(parse_given_run(good, "run").value()), good);
  const auto with = [&](const char* where, const std::string& more) {
    std::string text = good;
    return text.insert(text.find(where) + std::string_view(where).size(), more);
  };
  for (const std::string& bad :
       {with("{", R"("eval":{"path":["/etc/passwd"]},)"), with("{", R"("base":"/other",)"),
        with("{", R"("threads":1,)"), with("\"clients\":{", R"("data":["/*/*"],)"),
        with("\"adapter\":{", R"("init_from":"/x",)"), std::string("[]"), std::string("{}"), good + " "})
    EXPECT_FALSE(parse_given_run(bad, "run").ok()) << bad;
}

// What a client keeps of one run is not another's.
TEST_F(Exchange, FactorsOfAClientAreKeptByRun) {
  const std::string base = base_files_digest(kModel).value(), given = dir_.file("round.safetensors");
  for (const char* more : {"", "wire: bf16\n"}) {
    const auto own = server(config("{name: fedsa}", more));
    ASSERT_TRUE(write_round(*own, "c1", base, given).ok());
    const RoundFile round = read_round(given, model()).value();
    ASSERT_TRUE(train_round(round, demo_base(), data_of("c1"), dir_.file("own"), {}, base).ok());
    EXPECT_TRUE(file_exists(dir_.file("own/run-" + round.run_digest.substr(0, 16) + "/own-000001.safetensors")));
  }
}

TEST_F(Exchange, AnAdapterThatAnotherProgramMadeIsTaken) {
  const auto own = server(config("{name: ffa}"));
  const ModuleFactors& start = own->state().global;
  ModuleFactors other = start;
  for (auto& [module, each] : other)
    for (float& v : each.factors.b) v = 0.25f;
  const std::string path = dir_.file("model");
  ASSERT_TRUE(save_adapter(*adapter_of(other, model(), "x"), model(), path, {}).ok());
  const auto read = read_model(path + "/adapter_model.safetensors", start);
  ASSERT_TRUE(read.ok()) << read.status().message();
  const auto report = own->adopt(*read, {"c0", "c2"});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(own->round(), 2);
  EXPECT_EQ(own->state().global.begin()->second.factors.b[0], 0.25f);
  EXPECT_THAT(round_line(*report), HasSubstr("\"clients\":[\"c0\",\"c2\"]"));
  EXPECT_EQ(read_model(dir_.file("none"), start).status().code(), StatusCode::kNotFound);
  ModuleFactors less = start;
  less.erase(less.begin());
  EXPECT_THAT(read_model(path + "/adapter_model.safetensors", less).status().message(), HasSubstr("are the adapter's"));
  const auto flora = server(config("{name: flora}"));
  EXPECT_EQ(flora->adopt(*read, {"c0"}).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace lk
