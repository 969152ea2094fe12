// SPDX-License-Identifier: Apache-2.0
// Whole federated runs on the demo's base: rules, the two stages of SLoRA, what fails, and that a round done again, a
// batch cut otherwise or an interruption change no bit.
#include "lk/federated/simulation.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <set>

#include <boost/json.hpp>

#include "federated/demo_federation.h"
#include "lk/base/file.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"
#include "lk/train/run.h"

namespace lk {
namespace {
namespace json = boost::json;
using ::testing::HasSubstr;
using R = FederatedRule;

using testing::demo_base;
constexpr const char* kModel = testing::kDemoModel;

class SimulationTest : public ::testing::Test {
 protected:
  SimulationTest() {
    testing::write_clients(dir_, 4, 4);
    dir_.write("held.jsonl", "{\"prompt\": \"2 + 3 =\", \"completion\": \" 5\"}\n");
  }

  FederatedConfig config(R rule) {
    FederatedConfig run;
    run.base = kModel;
    run.dtype = TrainDtype::kF32;
    run.seed = 3;
    run.rounds = 2;
    run.block_tokens = 64;
    run.adapter.rank = 2;
    run.adapter.alpha = 4;
    run.adapter.target_modules = {"q_proj", "down_proj"};
    run.adapter.layers_to_transform = {0, 3};
    for (int client = 0; client < 4; ++client)
      run.clients.push_back({fmt::format("c{}", client), dir_.file(fmt::format("c{}.jsonl", client))});
    run.per_round = 3;
    run.data.render.max_length = 64;
    run.train.steps = 2;
    run.train.batch_samples = 2;
    run.train.lr = 5e-3;
    run.rule.name = rule;
    run.eval_path = {dir_.file("held.jsonl")};
    return run;
  }
  std::string out(const std::string& name) const { return dir_.file(name); }
  Status run(const FederatedConfig& config, const std::string& name, SimulationHooks hooks = {},
             const AskStop& stop = {}) {
    LK_ASSIGN_OR_RETURN(const auto simulation,
                        Simulation::create(config, demo_base(), out(name), std::move(hooks), stop));
    return simulation->run(stop);
  }
  void expect_runs(const FederatedConfig& config, const std::string& name, SimulationHooks hooks = {}) {
    const Status status = run(config, name, std::move(hooks));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::string newest(const std::string& name, const char* file) const {
    return read_file(join_path(join_path(out(name), "latest"), file)).value();
  }
  std::vector<json::object> metrics(const std::string& name) const {
    std::vector<json::object> lines;
    const std::string text = read_file(join_path(out(name), "metrics.jsonl")).value();
    for (size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1)
      lines.push_back(json::parse(std::string_view(text).substr(begin, text.find('\n', begin) - begin)).as_object());
    return lines;
  }
  std::string ledger(const std::string& name) const { return read_file(join_path(out(name), "ledger.jsonl")).value(); }
  void expect_same(const std::string& one, const std::string& other) const {
    for (const char* file : {"state.safetensors", kAdapterConfigFile, kAdapterWeightsFile})
      EXPECT_EQ(newest(one, file), newest(other, file)) << file;
    EXPECT_EQ(read_file(join_path(out(one), "metrics.jsonl")).value(),
              read_file(join_path(out(other), "metrics.jsonl")).value());
  }
  FederatedState state(const std::string& name) const {
    return read_state(join_path(join_path(out(name), "latest"), "state.safetensors"), demo_base().weights->config)
        .value();
  }
  std::shared_ptr<const Adapter> published(const std::string& name) const {
    auto adapter = load_adapter(name, join_path(out(name), "latest"), demo_base().weights->config, nullptr);
    EXPECT_TRUE(adapter.ok()) << adapter.status().message();
    return *adapter;
  }
  // ||x - y|| / ||y||, of changes.
  static double distance(const ModuleFactors& x, const ModuleFactors& y) {
    const WeightedFactors parts[] = {{&x, 1}, {&y, -1}};
    return std::sqrt(energy_of(stack_factors(parts)).value() / energy_of(y).value());
  }

  testing::TempDir dir_;
};

TEST_F(SimulationTest, EveryRuleLearnsAndGivesAnAdapter) {
  for (const auto& [rule, name] : kFederatedRules) {
    FederatedConfig run = config(rule);
    if (rule == R::kSlora) run.rule.density = 0.05;
    expect_runs(run, name);
    const auto lines = metrics(name);
    ASSERT_EQ(lines.size(), 3u) << name;
    EXPECT_LT(lines[2].at("eval_loss").to_number<double>(), lines[0].at("eval_loss").to_number<double>()) << name;
    const auto adapter = published(name);
    EXPECT_GE(adapter->max_rank, 2) << name;
    EXPECT_TRUE(adapter->layers[3][static_cast<size_t>(Proj::kDown)]) << name;
    EXPECT_FALSE(adapter->layers[1][static_cast<size_t>(Proj::kDown)]) << name;
    const double error = lines[2].at("aggregation_error").to_number<double>();
    const bool exact = rule == R::kFfa || rule == R::kRoLora || rule == R::kFlora || rule == R::kFedEx;
    if (exact) {
      EXPECT_LT(error, 1e-4) << name;
    }
    if (rule == R::kFedAvg) {
      EXPECT_GT(error, 1e-3);
    }
  }
  EXPECT_TRUE(file_exists(join_path(out("fedsa"), "personal")));
}

// The same seed: what is published evaluates like the model it stands for, residuals and merged ranks included.
TEST_F(SimulationTest, WhatIsPublishedIsTheModel) {
  for (const R rule : {R::kFlora, R::kFedEx, R::kFlex}) {
    const char* name = to_string(rule);
    FederatedConfig run = config(rule);
    expect_runs(run, name);
    LocalTask task{.round = 1, .start = factors_of(*published(name)).value()};
    const auto training = LocalTraining::create(run, demo_base()).value();
    const auto results = training->evaluate(task, {}, {}).value();
    EXPECT_NEAR(results[0].loss, metrics(name).back().at("eval_loss").to_number<double>(), 1e-4) << name;
  }
}

TEST_F(SimulationTest, AJointBatchIsSeparateRunsBitForBit) {
  for (const R rule : {R::kFedAvg, R::kFedEx, R::kSlora, R::kFedSa}) {
    FederatedConfig run = config(rule);
    run.rule.density = 0.05;
    expect_runs(run, "joint");
    run.together = 1;
    run.block_tokens = 48;
    expect_runs(run, "apart");
    expect_same("joint", "apart");
    for (const char* name : {"joint", "apart"}) std::filesystem::remove_all(out(name));
  }
}

TEST_F(SimulationTest, KilledAnywhereAndResumedGivesTheSameBytes) {
  for (const R rule : {R::kFedAvg, R::kRoLora, R::kFlora, R::kFlex, R::kFedEx, R::kFedSa, R::kSlora}) {
    FederatedConfig run = config(rule);
    run.rounds = 3;
    run.rule.density = 0.05;
    run.rule.keep_sparse = true;
    expect_runs(run, "whole");
    for (const int round : {0, 1, 2}) {
      // Stopped within the training of the round that follows.
      int64_t over = -1;
      int asked = 0;
      SimulationHooks hooks;
      hooks.on_round = [&](const std::string& line) { over = json::parse(line).at("round").as_int64(); };
      const Status stopped = this->run(run, "parts", hooks, [&] { return over == round && ++asked > 2; });
      EXPECT_EQ(stopped.code(), StatusCode::kCancelled) << stopped.message();
    }
    expect_runs(run, "parts");
    expect_same("whole", "parts");
    for (const char* name : {"whole", "parts"}) std::filesystem::remove_all(out(name));
  }
}

// One client, one round: whatever the rule, the model is what the trainer makes of its data alone.
TEST_F(SimulationTest, OneClientIsLocalTraining) {
  for (const R rule :
       {R::kFedAvg, R::kFfa, R::kRoLora, R::kFlora, R::kFlex, R::kFedEx, R::kFedSa, R::kMedian, R::kTrimmed}) {
    FederatedConfig run = config(rule);
    run.clients.resize(1);
    run.per_round = 1;
    run.rounds = 1;
    run.data.shuffle = false;
    const std::string name = to_string(rule);
    const auto server =
        FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
    ASSERT_TRUE(save_adapter(*server->publish()->adapter, demo_base().weights->config, out(name + "-start")).ok());
    expect_runs(run, name);
    JobConfig job;
    job.name = "alone";
    job.adapter.init_from = out(name + "-start");
    if (rule == R::kFfa || rule == R::kRoLora) job.adapter.freeze = {"A"};  // of rolora's first round as well
    job.data = run.data;
    job.data.path = run.clients[0].path;
    job.train = run.train;
    job.save.dir = out(name + "-alone");
    RunConfig alone;
    alone.base = kModel;
    alone.dtype = TrainDtype::kF32;
    alone.block_tokens = run.block_tokens;
    alone.jobs = {job};
    const auto trained = TrainRun::create(alone, demo_base(), {}).value();
    ASSERT_TRUE(trained->claim().ok());
    ASSERT_TRUE(trained->train({}).ok());
    const auto want = load_adapter("w", job.save.dir, demo_base().weights->config, nullptr).value();
    EXPECT_LT(distance(factors_of(*published(name)).value(), factors_of(*want).value()), 1e-5) << name;
  }
}

// One step of gradient descent by each client on all it has is one step on all records together: where the mean is that
// of what is trained (values of the whole matrices, ffa's B, fedavg's first step, in which A stands still).
TEST_F(SimulationTest, OneStepOfAllClientsIsTheCentralStep) {
  const std::string lines[] = {
      "{\"prompt\": \"1 + 2 =\", \"completion\": \" 3\"}\n", "{\"prompt\": \"2 + 2 =\", \"completion\": \" 4\"}\n",
      "{\"prompt\": \"3 + 4 =\", \"completion\": \" 7\"}\n", "{\"prompt\": \"4 + 1 =\", \"completion\": \" 5\"}\n",
      "{\"prompt\": \"6 + 2 =\", \"completion\": \" 8\"}\n", "{\"prompt\": \"9 + 0 =\", \"completion\": \" 9\"}\n"};
  dir_.write("c0.jsonl", lines[0]);
  dir_.write("c1.jsonl", lines[1] + lines[2]);
  dir_.write("c2.jsonl", lines[3] + lines[4] + lines[5]);
  dir_.write("everything.jsonl", lines[0] + lines[1] + lines[2] + lines[3] + lines[4] + lines[5]);
  for (const R rule : {R::kSlora, R::kFfa, R::kFedAvg}) {
    FederatedConfig run = config(rule);
    run.clients.resize(3);
    run.rounds = 1;
    run.rule.density = 1;
    run.rule.keep_sparse = true;
    run.train.steps = 1;
    run.train.batch_samples = 6;
    run.train.clip = 0;
    // AdamW whose eps is far above all gradients is gradient descent, of the rate lr / eps.
    run.train.eps = 1e4;
    run.train.lr = 1e4;
    expect_runs(run, "apart");
    run.clients = {{"everything", dir_.file("everything.jsonl")}};
    run.per_round = 1;
    expect_runs(run, "central");
    const ModuleFactors apart = factors_of(*published("apart")).value(),
                        central = factors_of(*published("central")).value();
    EXPECT_GT(energy_of(central).value(), 0) << to_string(rule);
    EXPECT_LT(distance(apart, central), 1e-4) << to_string(rule);
    for (const char* name : {"apart", "central"}) std::filesystem::remove_all(out(name));
  }
}

// Whose updates come first changes no bit of any rule.
TEST_F(SimulationTest, TheOrderInWhichUpdatesArriveChangesNoBit) {
  for (const auto& [rule, name] : kFederatedRules) {
    FederatedConfig run = config(rule);
    run.rule.density = 0.05;
    std::vector<std::string> states;
    for (const bool turned : {false, true}) {
      const auto server =
          FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
      for (int round = 0; round < 2; ++round) {
        std::vector<ClientUpdate> updates = testing::made_up_updates(*server);
        if (turned) std::ranges::reverse(updates);
        ASSERT_TRUE(server->close(std::move(updates)).ok()) << name;
      }
      ASSERT_TRUE(write_state(server->state(), dir_.file("state")).ok());
      states.push_back(read_file(dir_.file("state")).value());
    }
    EXPECT_EQ(states[0], states[1]) << name;
  }
}

// --- SLoRA

// A full mask and full rank: plain FedAvg of the matrices, and the hand-over loses nothing.
TEST_F(SimulationTest, SloraWithAFullMaskIsFedAvgOfTheMatrices) {
  FederatedConfig run = config(R::kSlora);
  run.adapter.rank = 256;
  run.adapter.target_modules = {"q_proj"};
  run.rounds = 1;
  run.rule.density = 1;
  run.rule.keep_sparse = true;  // so that the values can be looked at
  std::vector<ClientUpdate> updates;
  SimulationHooks hooks;
  hooks.deliver = [&](const ClientUpdate& update, int64_t) {
    updates.push_back(update);
    return std::vector<ClientUpdate>{update};
  };
  expect_runs(run, "full", hooks);
  const FederatedState after = state("full");
  double examples = 0;
  for (const ClientUpdate& update : updates) examples += static_cast<double>(update.num_examples);
  ASSERT_EQ(updates.size(), 3u);
  EXPECT_NE(updates[0].num_examples, updates[1].num_examples);
  for (const auto& [module, values] : after.sparse) {
    ASSERT_EQ(values.size(), 256u * 256u);
    for (size_t i = 0; i < values.size(); i += 101) {
      double mean = 0;
      for (const ClientUpdate& update : updates)
        mean += static_cast<double>(update.num_examples) / examples *
                static_cast<double>(update.tensors.at(update_tensor_name(module, kUpdateSparse))[i]);
      ASSERT_NEAR(values[i], mean, 1e-8 + 1e-6 * std::abs(mean));
    }
  }
  EXPECT_LT(metrics("full").back().at("handover_dropped").to_number<double>(), 1e-6);
  for (const auto& [module, values] : after.sparse) {
    ModuleFactors dense;
    dense[module].factors = {.rank = 256, .in = 256, .out = 256, .a = std::vector<float>(256 * 256), .b = values};
    for (size_t i = 0; i < 256; ++i) dense[module].factors.a[i * 257] = 1;
    ModuleFactors handed;
    handed[module] = after.global.at(module);
    EXPECT_LT(distance(handed, dense), 1e-3);
  }
}

// The step from values to factors changes nothing that is kept: with keep_sparse the model before it is the model
// after.
TEST_F(SimulationTest, KeepSparseHandsOverWithoutALoss) {
  FederatedConfig run = config(R::kSlora);
  run.rounds = 1;
  run.rule.density = 0.1;
  run.rule.keep_sparse = true;
  expect_runs(run, "kept");
  run.rule.keep_sparse = false;
  expect_runs(run, "dropped");
  const double dropped = metrics("dropped").back().at("handover_dropped").to_number<double>();
  EXPECT_GT(dropped, 0.3);  // a rank of 2 holds little of a random mask
  EXPECT_TRUE(state("dropped").sparse.empty());
  // Published are all ranks of what lies below, too.
  const ModuleFactors kept = factors_of(*published("kept")).value(), cut = factors_of(*published("dropped")).value();
  EXPECT_NEAR(distance(cut, kept), std::sqrt(dropped), 1e-3);
  const double loss = metrics("kept").back().at("eval_loss").to_number<double>();
  const auto training = LocalTraining::create(run, demo_base()).value();
  EXPECT_NEAR(training->evaluate({.round = 1, .start = kept}, {}, {}).value()[0].loss, loss, 1e-4);
}

TEST_F(SimulationTest, PositionsOfValuesAreNeverSentAndEqualBytesAreEqual) {
  FederatedConfig run = config(R::kSlora);
  run.rounds = 2;
  std::vector<ClientUpdate> updates;
  SimulationHooks hooks;
  hooks.deliver = [&](const ClientUpdate& update, int64_t) {
    updates.push_back(update);
    return std::vector<ClientUpdate>{update};
  };
  expect_runs(run, "bytes", hooks);
  const auto one = FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
  const auto other =
      FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
  EXPECT_EQ(one->mask().digest(), other->mask().digest());
  for (const auto& [name, values] : updates[0].tensors) EXPECT_TRUE(name.ends_with(kUpdateSparse)) << name;
  const auto lines = metrics("bytes");
  const double first = lines[1].at("upload_bytes").to_number<double>(),
               second = lines[2].at("upload_bytes").to_number<double>();
  EXPECT_NEAR(first / second, 1, 0.02);
  run.seed = 4;
  const auto third =
      FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
  EXPECT_NE(one->mask().digest(), third->mask().digest());
}

// --- Local steps

TEST_F(SimulationTest, FedProxHoldsClientsBackAndTheWireRounds) {
  const auto norm_of_first = [&](FederatedConfig run, const std::string& name) {
    double squares = 0;
    run.rounds = 1;
    run.train.steps = 4;
    SimulationHooks hooks;
    hooks.deliver = [&](const ClientUpdate& update, int64_t) {
      for (const auto& [tensor, values] : update.tensors)
        for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
      return std::vector<ClientUpdate>{update};
    };
    expect_runs(run, name, hooks);
    return std::sqrt(squares);
  };
  FederatedConfig run = config(R::kFedAvg);
  const double free = norm_of_first(run, "free");
  run.rule.proximal = 100;
  EXPECT_LT(norm_of_first(run, "held"), 0.9 * free);
  run = config(R::kFedAvg);
  run.wire = TrainDtype::kBf16;
  run.rounds = 1;
  SimulationHooks hooks;
  hooks.deliver = [&](const ClientUpdate& update, int64_t) {
    for (const auto& [name, values] : update.tensors)
      for (const float v : values) EXPECT_EQ(v, static_cast<float>(bf16(v)));
    return std::vector<ClientUpdate>{update};
  };
  expect_runs(run, "bf16", hooks);
  EXPECT_EQ(2 * metrics("bf16")[1].at("upload_bytes").to_number<double>(),
            metrics("free")[1].at("upload_bytes").to_number<double>());
}

TEST_F(SimulationTest, RanksDifferByNameWhereTheRuleTakesThem) {
  for (const R rule : {R::kFlora, R::kFlex}) {
    FederatedConfig run = config(rule);
    run.per_round = 4;
    run.ranks = {{"c0", 1}, {"c1", 4}};
    std::set<size_t> sizes;
    SimulationHooks hooks;
    hooks.deliver = [&](const ClientUpdate& update, int64_t) {
      sizes.insert(update.tensors.begin()->second.size());
      return std::vector<ClientUpdate>{update};
    };
    expect_runs(run, to_string(rule), hooks);
    EXPECT_EQ(sizes.size(), 3u) << "ranks 1, 2 and 4";
  }
}

// --- What goes wrong

// Each fault counts as a client that vanished: the round is that of the others, to the bit.
TEST_F(SimulationTest, BadUpdatesAreRefusedAndTheOthersAveraged) {
  FederatedConfig run = config(R::kFedAvg);
  run.rounds = 1;
  run.max_norm = 1e4;
  run.seed = 5;
  std::string victim;
  const auto with = [&](const std::string& name, const std::function<std::vector<ClientUpdate>(ClientUpdate)>& fault) {
    SimulationHooks hooks;
    bool first = true;
    hooks.deliver = [&, fault](const ClientUpdate& update, int64_t) {
      if (!std::exchange(first, false)) return std::vector<ClientUpdate>{update};
      victim = update.client;
      return fault(update);
    };
    expect_runs(run, name, hooks);
  };
  const auto one = [](const std::function<void(ClientUpdate&)>& change) {
    return [change](ClientUpdate update) {
      change(update);
      return std::vector<ClientUpdate>{update};
    };
  };
  with("vanished", [](ClientUpdate) { return std::vector<ClientUpdate>(); });
  EXPECT_THAT(ledger("vanished"), HasSubstr("\"vanished\""));
  const std::vector<std::tuple<std::string, std::function<void(ClientUpdate&)>, std::string>> faults{
      {"nan", [](ClientUpdate& u) { u.tensors.begin()->second[1] = std::nanf(""); }, "not finite"},
      {"infinite", [](ClientUpdate& u) { u.tensors.begin()->second[0] = INFINITY; }, "not finite"},
      {"huge", [](ClientUpdate& u) { u.tensors.begin()->second[0] = 1e6f; }, "max_norm"},
      {"stale", [](ClientUpdate& u) { u.round = 7; }, "round 7"},
      {"missing", [](ClientUpdate& u) { u.tensors.erase(u.tensors.begin()); }, "no tensor"},
      {"more", [](ClientUpdate& u) { u.tensors["base_model.model.lm_head.lora_A.weight"] = {1}; }, "does not train"},
      {"shape", [](ClientUpdate& u) { u.tensors.begin()->second.pop_back(); }, "values, expected"},
      {"stranger", [](ClientUpdate& u) { u.client = "eve"; }, "no client"},
      {"empty", [](ClientUpdate& u) { u.num_examples = 0; }, "0 examples"}};
  for (const auto& [name, change, reason] : faults) {
    with(name, one(change));
    expect_same("vanished", name);
    EXPECT_THAT(ledger(name), HasSubstr("\"refused\"")) << name;
    EXPECT_THAT(ledger(name), HasSubstr(reason)) << name;
  }
  // Sent twice counts once; a second one that differs is refused.
  expect_runs(run, "good");
  with("twice", [](ClientUpdate u) { return std::vector<ClientUpdate>{u, u}; });
  expect_same("good", "twice");
  with("changed", [](ClientUpdate u) {
    ClientUpdate other = u;
    other.tensors.begin()->second[0] += 1;
    return std::vector<ClientUpdate>{u, other};
  });
  expect_same("good", "changed");
  EXPECT_THAT(ledger("changed"), HasSubstr("a second update"));
  EXPECT_NE(newest("good", kAdapterWeightsFile), newest("vanished", kAdapterWeightsFile));
}

TEST_F(SimulationTest, WithoutAQuorumOthersAreAskedThenItStops) {
  FederatedConfig run = config(R::kFedAvg);
  run.per_round = 2;
  run.quorum = 2;
  run.retries = 1;
  int64_t lost = 1;  // attempts of a round in which nobody answers
  std::map<int64_t, std::set<std::string>> asked;
  SimulationHooks hooks;
  hooks.deliver = [&](const ClientUpdate& update, int64_t attempt) {
    if (update.round == 2) asked[attempt].insert(update.client);
    return update.round == 2 && attempt < lost ? std::vector<ClientUpdate>() : std::vector<ClientUpdate>{update};
  };
  expect_runs(run, "late", hooks);
  EXPECT_EQ(asked.size(), 2u);
  EXPECT_NE(asked[0], asked[1]);
  EXPECT_THAT(ledger("late"), HasSubstr("no quorum"));
  lost = 2;
  const Status status = this->run(run, "never", hooks);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("round 2: no quorum of 2 in 2 attempts"));
  EXPECT_EQ(state("never").round, 1);
  // When they are there again, the same command goes on.
  lost = 1;
  expect_runs(run, "never", hooks);
  expect_same("late", "never");
}

TEST_F(SimulationTest, AFullDiskLeavesTheLastRoundAndTheSameCommandGoesOn) {
  FederatedConfig run = config(R::kFlora);
  run.rounds = 3;
  expect_runs(run, "good");
  for (const char* operation :
       {"write state.safetensors", "sync adapter_model.safetensors", "rename", "write manifest"}) {
    int count = 0;
    SimulationHooks hooks;
    hooks.fault = [&](std::string_view what) {
      return what == operation && ++count == 2 ? io_error("No space left on device") : Status();
    };
    const Status status = this->run(run, "full", hooks);
    EXPECT_EQ(status.code(), StatusCode::kIoError) << operation;
    EXPECT_EQ(state("full").round, 1) << operation;
    published("full");
    expect_runs(run, "full");
    expect_same("good", "full");
    std::filesystem::remove_all(out("full"));
  }
}

TEST_F(SimulationTest, AnotherRunsDirectoryIsRefused) {
  FederatedConfig run = config(R::kFedAvg);
  run.rounds = 1;
  expect_runs(run, "mine");
  FederatedConfig other = run;
  other.train.lr = 1e-3;
  EXPECT_THAT(this->run(other, "mine").message(), HasSubstr("the configuration"));
  other = run;
  dir_.write("c2.jsonl", "{\"prompt\": \"x\", \"completion\": \"y\"}\n");
  EXPECT_THAT(this->run(other, "mine").message(), HasSubstr("the clients' data"));
  dir_.write("mine/run.json", "{\"base_digest\": \"0\"}");
  EXPECT_THAT(this->run(run, "mine").message(), HasSubstr("the base's files"));
  const auto held = Simulation::create(run, demo_base(), out("held"), {}).value();
  EXPECT_THAT(Simulation::create(run, demo_base(), out("held"), {}).status().message(), HasSubstr("another run"));
}

TEST_F(SimulationTest, SamplesAreOfTheSeedAndTheRound) {
  const auto server = [&](uint64_t seed) {
    FederatedConfig run = config(R::kFedAvg);
    run.seed = seed;
    run.per_round = 2;
    return FederatedServer::create(run, demo_base().weights->config, *demo_base().weights->checkpoint).value();
  };
  std::vector<std::string> eligible{"c3", "c1", "c0", "c2"};
  std::set<std::vector<std::string>> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto sampled = server(seed)->sample(eligible, 0);
    EXPECT_EQ(sampled, server(seed)->sample({"c0", "c1", "c2", "c3"}, 0));
    EXPECT_EQ(sampled.size(), 2u);
    EXPECT_TRUE(std::ranges::is_sorted(sampled));
    seen.insert(sampled);
  }
  EXPECT_GT(seen.size(), 4u);
  EXPECT_EQ(server(1)->sample({"c1"}, 0), std::vector<std::string>{"c1"});
}

}  // namespace
}  // namespace lk
