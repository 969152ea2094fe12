// SPDX-License-Identifier: Apache-2.0
// The aggregator, killed at each of its steps: what it goes on to is what it would have come to.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "federated/demo_federation.h"
#include "lk/base/file.h"
#include "lk/federated/run_directory.h"
#include "lk/io/checkpoint.h"
#include "lk/lora/adapter_files.h"

namespace lk {
namespace {
using R = FederatedRule;

constexpr int64_t kRounds = 3;

class AggregatorKill : public ::testing::Test {
 protected:
  // Nothing here starts a thread: a child has none of its parent's.
  const Checkpoint base_ = open_checkpoint(testing::kDemoModel).value();

  FederatedConfig config(R rule, bool privacy) {
    FederatedConfig run;
    run.base = testing::kDemoModel;
    run.dtype = TrainDtype::kF32;
    run.rounds = kRounds;
    run.keep = 1;
    run.adapter.rank = 2;
    run.adapter.alpha = 4;
    run.adapter.target_modules = {"k_proj"};
    run.adapter.layers_to_transform = {0};
    for (int client = 0; client < 4; ++client) run.clients.push_back({fmt::format("c{}", client), ""});
    run.per_round = 3;
    run.train.steps = 2;
    run.rule.name = rule;
    run.rule.stage1_rounds = 2;
    run.rule.density = 0.05;
    run.rule.keep_sparse = true;
    if (privacy) run.privacy = {.clip = 0.5, .noise = 1};
    return run;
  }
  // Each round as `lorikeet federate close` does it, from what is on disk. The noise is that of simulations, so that
  // two runs are equal.
  Status go_on(const FederatedConfig& run, const std::string& name, const RunDirectory::Fault& fault) {
    for (;;) {
      LK_ASSIGN_OR_RETURN(const auto server, FederatedServer::create(run, base_.config, *base_.weights));
      RunDirectory files(run, dir_.file(name), fault, NoiseSource::kSimulated);
      LK_RETURN_IF_ERROR(files.open(*server, base_.config, run.base, {}).status());
      if (server->done()) return Status();
      std::vector<ClientUpdate> updates = testing::made_up_updates(*server);
      for (const ClientUpdate& update : updates)
        LK_RETURN_IF_ERROR(files.ledger(server->round(), "received", update.client));
      LK_ASSIGN_OR_RETURN(const RoundReport report, server->close(std::move(updates)));
      server->add_history(fmt::format("{{\"round\":{}}}", report.round));
      LK_RETURN_IF_ERROR(files.save(*server, base_.config).status());
    }
  }
  testing::TempDir dir_;
};

TEST_F(AggregatorKill, AtAnyStepItGoesOnToTheSameBytes) {
  for (const auto& [rule, privacy] :
       {std::pair(R::kFedAvg, false), {R::kFlora, false}, {R::kFedEx, false}, {R::kSlora, false}, {R::kFfa, true}}) {
    const FederatedConfig run = config(rule, privacy);
    std::vector<std::string> steps;
    const Status whole = go_on(run, "whole", [&](std::string_view step) {
      steps.emplace_back(step);
      return Status();
    });
    ASSERT_TRUE(whole.ok()) << whole.message();
    for (const char* step :
         {"write run.json", "ledger received", "create", "write state.safetensors", "sync adapter_model.safetensors",
          "write manifest", "rename", "sync parent", "remove", "link latest", "ledger saved", "write metrics"})
      EXPECT_THAT(steps, ::testing::Contains(step));
    for (const char* step : {"write noise key", "ledger release", "erase noise key"})
      EXPECT_EQ(std::ranges::count(steps, step) > 0, privacy) << step;
    for (size_t at = 0; at < steps.size(); ++at) {
      const pid_t child = ::fork();
      if (child == 0) {
        size_t count = 0;
        (void)go_on(run, "parts", [&](std::string_view) {
          if (count++ == at) ::_exit(9);  // nothing is closed, flushed or cleaned up
          return Status();
        });
        ::_exit(1);
      }
      int how = 0;
      ASSERT_EQ(::waitpid(child, &how, 0), child);
      ASSERT_TRUE(WIFEXITED(how) && WEXITSTATUS(how) == 9) << steps[at] << ": " << how;
      const Status rest = go_on(run, "parts", {});
      ASSERT_TRUE(rest.ok()) << steps[at] << ": " << rest.message();
      for (const char* file : {kStateFile, kAdapterWeightsFile, kAdapterConfigFile})
        EXPECT_TRUE(dir_.read(fmt::format("whole/latest/{}", file)) == dir_.read(fmt::format("parts/latest/{}", file)))
            << file << " of " << to_string(rule) << ", killed at " << steps[at] << " (" << at << ")";
      EXPECT_EQ(dir_.read("whole/metrics.jsonl"), dir_.read("parts/metrics.jsonl")) << steps[at];
      if (privacy) {
        EXPECT_EQ(read_privacy_spent(dir_.file("parts"))->releases, kRounds) << steps[at];
      }
      EXPECT_FALSE(file_exists(dir_.file("parts/noise.key")));
      std::filesystem::remove_all(dir_.file("parts"));
    }
    std::filesystem::remove_all(dir_.file("whole"));
  }
}

}  // namespace
}  // namespace lk
