// SPDX-License-Identifier: Apache-2.0
// A federation whose clients come by themselves: the same bytes as the simulation wherever the server is killed, and
// what becomes of updates that are not what they should be.
#include "lk/federated/coordinator.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>
#include <filesystem>
#include <set>

#include "lk/base/file.h"
#include "lk/federated/ledger_file.h"
#include "lk/federated/simulation.h"
#include "lk/lora/adapter_files.h"
#include "lk/ops/cpu_backend.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kModel = "examples/demo/model";

const TrainBase& demo_base() {
  static const std::unique_ptr<Backend> backend = make_cpu_backend({.num_threads = 2}).value();
  static const TrainBase base = [] {
    TrainBase made;
    made.directory = kModel;
    made.weights = load_weights(kModel, DType::kF32, *backend).value();
    made.backend = backend.get();
    made.tokenizer = Tokenizer::load(kModel).value();
    return made;
  }();
  return base;
}
const ModelConfig& model() { return demo_base().weights->config; }
const std::string& base_digest() {
  static const std::string digest = base_files_digest(kModel).value();
  return digest;
}

class Coordinated : public ::testing::Test {
 protected:
  using Made = Result<std::unique_ptr<Coordinator>>;

  Coordinated() {
    for (int client = 0; client < 4; ++client) {
      std::string lines;
      for (int n = 0; n < 2 + client; ++n)
        lines += fmt::format("{{\"prompt\": \"{} + {} =\", \"completion\": \" {}\"}}\n", client, n, client + n);
      dir_.write(fmt::format("c{}.jsonl", client), lines);
    }
  }
  FederatedConfig config(const std::string& clients = "per_round: 2", const std::string& more = "") {
    return parse_federated_config(
               fmt::format("base: {}\ndtype: f32\nseed: 11\nrounds: 2\nblock_tokens: 64\nkeep: 9\n"
                           "adapter: {{rank: 2, alpha: 3, target_modules: [q_proj], layers_to_transform: [0]}}\n"
                           "clients: {{data: \"{}/c*.jsonl\", {}}}\n"
                           "train: {{steps: 1, batch_samples: 2, lr: 5.0e-3}}\n{}",
                           kModel, dir_.path(), clients, more),
               "run.yaml")
        .value();
  }
  Made open(const FederatedConfig& run, const std::string& name, Coordinator::Hooks hooks = {}, int64_t wait_for = 0) {
    return Coordinator::create(run, model(), *demo_base().weights->checkpoint, dir_.file(name), wait_for,
                               std::move(hooks));
  }
  void join_all(Coordinator& server, const FederatedConfig& run) {
    for (const ClientSpec& client : run.clients) ASSERT_TRUE(server.join(client.name, 2 + client.name[1] - '0').ok());
  }
  // What the client makes of its task; the same bytes whenever it is asked.
  std::string update_of(const std::string& client, const Coordinator::Task& task,
                        const std::function<void(UpdateFile&)>& change = {}) {
    const std::string key = client + task.sha256;
    if (!change && updates_.contains(key)) return updates_[key];
    const RoundFile round = read_round(task.path, model()).value();
    UpdateFile update =
        train_round(round, demo_base(), dir_.file(client + ".jsonl"), dir_.file("own"), {}, base_digest()).value();
    if (change) change(update);
    const std::string path = dir_.file("sent.safetensors");
    EXPECT_TRUE(write_update(update, round.config.wire, path).ok());
    const std::string bytes = read_file(path).value();
    if (!change) updates_[key] = bytes;
    return bytes;
  }
  // All that is left of a run; the first failure.
  Status finish(Coordinator& server, const FederatedConfig& run) {
    for (const ClientSpec& client : run.clients) LK_RETURN_IF_ERROR(server.join(client.name, 2 + client.name[1] - '0'));
    while (!server.done()) {
      if (!server.in_work()) LK_RETURN_IF_ERROR(server.begin());
      for (const ClientSpec& client : run.clients)
        if (const Coordinator::Task* task = server.task_of(client.name))
          LK_RETURN_IF_ERROR(server.receive(client.name, task->round, update_of(client.name, *task)));
      LK_RETURN_IF_ERROR(server.end());
    }
    return Status();
  }
  std::string adapter(const std::string& name) {
    return read_file(join_path(dir_.file(name), std::string("latest/") + kAdapterWeightsFile)).value();
  }
  std::string ledger(const std::string& name) { return read_file(join_path(dir_.file(name), "ledger.jsonl")).value(); }
  std::string simulated(const FederatedConfig& run) {
    const auto simulation = Simulation::create(run, demo_base(), dir_.file("simulated"), {}).value();
    EXPECT_TRUE(simulation->run().ok());
    return adapter("simulated");
  }

  testing::TempDir dir_;
  std::map<std::string, std::string> updates_;
};

// The whole directory's history: a kill between a file and its line in the ledger loses neither.
TEST_F(Coordinated, KilledAtEachStepItEndsWithTheSimulationsBytesAndAWholeLedger) {
  const FederatedConfig run = config();
  const std::string expected = simulated(run);
  std::vector<std::string> steps;
  {
    Coordinator::Hooks hooks;
    hooks.before = [&](std::string_view step) { return steps.emplace_back(step), Status(); };
    hooks.fault = hooks.before;
    auto whole = open(run, "whole", std::move(hooks)).value();
    ASSERT_TRUE(finish(*whole, run).ok());
  }
  EXPECT_EQ(adapter("whole"), expected);
  const auto happened = [&](const std::string& name) {
    std::set<std::string> lines;
    EXPECT_TRUE(read_ledger(join_path(dir_.file(name), kLedgerFile), [&](const boost::json::object& line) {
                  const auto text = [&](const char* key) {
                    return line.contains(key) ? std::string(line.at(key).as_string()) : std::string();
                  };
                  const std::string event = text("event");
                  if (event == "joined" || event == "resumed")  // of no round; only after a kill
                    return void(event == "joined" && lines.insert(event + text("client")).second);
                  lines.insert(fmt::format("{} {} {}", line.at("round").as_int64(), event, text("client")));
                }).ok());
    return lines;
  };
  for (const char* step : {"join", "sample", "task", "write update", "take update", "save", "close", "ledger joined",
                           "ledger sampled", "ledger received", "ledger saved"})
    EXPECT_THAT(steps, ::testing::Contains(step));
  for (size_t kill = 0; kill < steps.size(); ++kill) {
    const std::string name = fmt::format("killed{}", kill);
    size_t count = 0;
    Coordinator::Hooks hooks;
    // Of this machine: nobody is told that it was the client's fault.
    hooks.before = [&](std::string_view) { return count++ == kill ? io_error("killed") : Status(); };
    hooks.fault = hooks.before;
    {
      const Made server = open(run, name, std::move(hooks));
      const Status ended = server.ok() ? finish(**server, run) : server.status();
      EXPECT_EQ(ended.code(), StatusCode::kIoError) << steps[kill];
    }
    auto again = open(run, name).value();
    const Status status = finish(*again, run);
    ASSERT_TRUE(status.ok()) << steps[kill] << ": " << status.message();
    EXPECT_EQ(adapter(name), expected) << kill << " " << steps[kill];
    EXPECT_EQ(happened(name), happened("whole")) << kill << " " << steps[kill];
  }
}

TEST_F(Coordinated, AFullDiskPublishesNothingAndTheRunGoesOn) {
  const FederatedConfig run = config();
  const std::string expected = simulated(run);
  bool full = false;
  Coordinator::Hooks hooks;
  hooks.fault = [&](std::string_view operation) {
    return full && operation.starts_with("write") ? io_error("no space left on device") : Status();
  };
  hooks.on_round = [&](const std::string&) { full = true; };  // in the second round
  {
    auto server = open(run, "full", std::move(hooks)).value();
    EXPECT_THAT(finish(*server, run).message(), HasSubstr("no space"));
  }
  const std::string first =
      read_file(join_path(dir_.file("simulated"), "rounds/checkpoint-1/adapter_model.safetensors")).value();
  EXPECT_EQ(adapter("full"), first);
  auto again = open(run, "full").value();
  ASSERT_TRUE(again->in_work());
  EXPECT_EQ(again->progress().received, 2) << "what had arrived is kept";
  ASSERT_TRUE(again->end().ok());
  EXPECT_EQ(adapter("full"), expected);
}

TEST_F(Coordinated, WhatIsNoUpdateIsRefusedAndTheOthersCount) {
  const FederatedConfig run = config("per_round: 4, quorum: 1", "rule: {name: fedavg}\n");
  auto server = open(run, "refused").value();
  EXPECT_FALSE(server->can_begin());
  const Status other = server->check_base("c0", "0123");
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), AllOf(HasSubstr("0123"), HasSubstr(base_digest())));
  join_all(*server, run);
  ASSERT_TRUE(server->begin().ok());
  const auto task = [&](const char* client) { return *server->task_of(client); };
  const auto code = [&](const char* client, int64_t round, const std::string& bytes) {
    return server->receive(client, round, bytes).code();
  };
  const Coordinator::Task c0 = task("c0"), c1 = task("c1"), c2 = task("c2");
  const std::string good = update_of("c0", c0);
  EXPECT_EQ(code("c0", 2, good), StatusCode::kFailedPrecondition);
  EXPECT_NE(server->task_of("c0"), nullptr) << "a stale update is no answer";
  EXPECT_EQ(code("mallory", 1, good), StatusCode::kNotFound);
  EXPECT_EQ(code("c1", 1, good), StatusCode::kInvalidArgument) << "of another client";
  EXPECT_EQ(server->task_of("c1"), nullptr) << "a refused client is not waited for";
  EXPECT_EQ(code("c1", 1, std::string(static_cast<size_t>(server->max_update_bytes()) + 1, 'x')),
            StatusCode::kResourceExhausted);
  const auto changed = [&](const std::function<void(UpdateFile&)>& change) { return update_of("c2", c2, change); };
  EXPECT_EQ(code("c2", 1, changed([](UpdateFile& f) { f.update.tensors.begin()->second[0] = std::nanf(""); })),
            StatusCode::kDataLoss);
  EXPECT_EQ(code("c2", 1, changed([](UpdateFile& f) { f.update.tensors.begin()->second.pop_back(); })),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code("c2", 1, changed([](UpdateFile& f) { f.run_digest = "ef01"; })), StatusCode::kFailedPrecondition);
  EXPECT_EQ(code("c1", 1, update_of("c1", c1, [](UpdateFile& f) { f.base_digest = "ef01"; })),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(code("c0", 1, good), StatusCode::kOk);
  EXPECT_EQ(code("c0", 1, good), StatusCode::kOk) << "once more is no harm";
  EXPECT_EQ(code("c0", 1, update_of("c0", c0, [](UpdateFile& f) { f.loss = 7; })), StatusCode::kAlreadyExists);
  EXPECT_EQ(server->give_up("c0", 1, "late").code(), StatusCode::kAlreadyExists);
  EXPECT_TRUE(server->give_up("c3", 1, "no memory").ok());
  EXPECT_EQ(code("c3", 1, update_of("c3", {.round = 1, .path = c1.path, .sha256 = "c1's"})),
            StatusCode::kInvalidArgument);
  EXPECT_TRUE(server->progress().complete());
  EXPECT_EQ(server->progress().received, 1);
  ASSERT_TRUE(server->end().ok());
  EXPECT_THAT(server->server().state().history.back(), HasSubstr("\"clients\":[\"c0\"]"));
  const std::string said = ledger("refused");
  for (const char* part :
       {"not finite", "another run", "another base", "second update", "no memory", "at most", "values, expected"})
    EXPECT_THAT(said, HasSubstr(part));
}

TEST_F(Coordinated, OneClientCannotEndTheRunNorTakeMoreWeightThanItJoinedWith) {
  for (const char* rule : {"fedavg", "flora", "flex", "fedex", "trimmed", "median"}) {
    const FederatedConfig run = config("per_round: 3, quorum: 1", fmt::format("rule: {{name: {}}}\n", rule));
    const std::string name = std::string("huge-") + rule;
    auto server = open(run, name).value();
    join_all(*server, run);
    while (!server->done()) {
      ASSERT_TRUE(server->begin().ok());
      bool first = true;
      for (const std::string& client : server->missing()) {
        const Coordinator::Task task = *server->task_of(client);
        const Status status = server->receive(client, task.round, update_of(client, task, [&](UpdateFile& f) {
                                                if (first)
                                                  for (auto& [tensor, values] : f.update.tensors)
                                                    std::ranges::fill(values, 3e38f);
                                                f.update.num_examples = int64_t{1} << 40;
                                              }));
        EXPECT_EQ(status.code(), first ? StatusCode::kInvalidArgument : StatusCode::kOk) << rule;
        EXPECT_THAT(status.message(), Not(HasSubstr(dir_.path())));
        first = false;
      }
      const Status ended = server->end();
      ASSERT_TRUE(ended.ok()) << rule << ": " << ended.message();
    }
    if (std::string(rule) == "fedavg") {  // with the honest weights it would be the same bytes
      const std::string weighed = adapter(name);
      auto honest = open(run, "honest").value();
      join_all(*honest, run);
      while (!honest->done()) {
        ASSERT_TRUE(honest->begin().ok());
        bool refused = true;
        for (const std::string& client : honest->missing()) {
          const Coordinator::Task task = *honest->task_of(client);
          if (std::exchange(refused, false)) continue;
          ASSERT_TRUE(honest->receive(client, task.round, update_of(client, task)).ok());
        }
        ASSERT_TRUE(honest->end().ok());
      }
      EXPECT_EQ(weighed, adapter("honest"));
    }
  }
}

TEST_F(Coordinated, WhatAClientRepeatsIsOneLineAndNamesNoPath) {
  const FederatedConfig run = config("per_round: 4, quorum: 1");
  auto server = open(run, "repeated").value();
  join_all(*server, run);
  ASSERT_TRUE(server->begin().ok());
  EXPECT_THAT(server->receive("c0", 1, "no update").message(), Not(HasSubstr(dir_.path())));
  const std::string before = ledger("repeated");
  for (int n = 0; n < 20; ++n) {
    EXPECT_FALSE(server->receive("c0", 1, fmt::format("no update {}", n)).ok());
    EXPECT_FALSE(server->receive("c0", 7, "stale").ok());
    EXPECT_TRUE(server->give_up("c0", 1, "boom\n\x1b[31m").ok());
    EXPECT_TRUE(server->refuse("c0", 1, "too large").ok());
    EXPECT_TRUE(server->join("c0", 5 + n).ok());
  }
  const std::string added = ledger("repeated").substr(before.size());
  EXPECT_LE(std::ranges::count(added, '\n'), 5);
  EXPECT_THAT(added, AllOf(HasSubstr("boom??[31m"), Not(HasSubstr(dir_.path()))));
}

TEST_F(Coordinated, ARoundWithoutQuorumIsRepeatedWithOthersAndThenEndsTheRun) {
  const FederatedConfig run = config("per_round: 2, quorum: 2, retries: 1");
  auto server = open(run, "none").value();
  join_all(*server, run);
  ASSERT_TRUE(server->begin().ok());
  const std::vector<std::string> first = server->missing();
  ASSERT_EQ(first.size(), 2u);
  const Coordinator::Task task = *server->task_of(first[0]);
  ASSERT_TRUE(server->receive(first[0], 1, update_of(first[0], task)).ok());
  EXPECT_THAT(server->missing(), ElementsAre(first[1]));
  ASSERT_TRUE(server->end().ok());
  EXPECT_FALSE(server->in_work());
  // Killed between the attempts: the second one is due, not the first.
  server.reset();
  server = open(run, "none").value();
  EXPECT_FALSE(server->in_work());
  EXPECT_EQ(server->attempt(), 1);
  ASSERT_TRUE(server->begin().ok());
  EXPECT_NE(server->missing(), first);
  for (const std::string& client : server->missing()) EXPECT_GT(server->task_of(client)->number, task.number);
  const Status ended = server->end();
  EXPECT_EQ(ended.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(ended.message(), HasSubstr("no quorum of 2 in 2 attempts"));
  EXPECT_THAT(ledger("none"), AllOf(HasSubstr("vanished"), HasSubstr("no quorum")));
  server.reset();
  server = open(run, "none").value();
  ASSERT_TRUE(finish(*server, run).ok()) << "the state is kept";
}

TEST_F(Coordinated, WhoHasTooFewExamplesIsNeverAsked) {
  const FederatedConfig run = config("per_round: 2, min_examples: 4");
  const std::string expected = simulated(run);
  auto server = open(run, "few").value();
  ASSERT_TRUE(finish(*server, run).ok());
  EXPECT_EQ(adapter("few"), expected);
  EXPECT_THAT(ledger("few"), Not(HasSubstr("\"event\":\"sampled\",\"client\":\"c0\"")));
  server = open(config("per_round: 2, min_examples: 100"), "nobody").value();
  join_all(*server, run);
  EXPECT_THAT(server->begin().message(), HasSubstr("min_examples"));
  EXPECT_FALSE(open(run, "many", {}, 9).ok()) << "more than there are";
}

}  // namespace
}  // namespace lk
