// SPDX-License-Identifier: Apache-2.0
// Simulation: a whole federated run in one process. Everything it needs to go on is in its directory after each round:
//
//   run.json               what the run is; another run is refused
//   rounds/checkpoint-N/   the state after round N, the model as a PEFT directory, complete or not there at all
//   latest                 link to the newest of them
//   metrics.jsonl          one line a round, from the state: the same bytes however often the run was interrupted
//   ledger.jsonl           what happened, with times: who was asked, who answered, who was refused and why
//   personal/NAME          fedsa, at the end: each client's adapter
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/federated/local_training.h"
#include "lk/train/checkpoint_file.h"

namespace lk {

struct SimulationHooks {
  std::function<void(const std::string& line)> on_round;  // as it goes to metrics.jsonl
  std::function<void(const std::string& text)> on_note;
  // For tests: what arrives of an update; empty: the update.
  std::function<std::vector<ClientUpdate>(const ClientUpdate&, int64_t attempt)> deliver;
  std::function<Status(std::string_view operation)> fault;  // of CheckpointStore
};

class Simulation {
 public:
  // kFailedPrecondition when the directory holds another run. Goes on from its newest round.
  static Result<std::unique_ptr<Simulation>> create(const FederatedConfig& config, const TrainBase& base,
                                                    const std::string& directory, SimulationHooks hooks,
                                                    const AskStop& stop = {});
  // Until all rounds are over. kCancelled when `stop` said so: the round in work is done anew by the next run.
  // kFailedPrecondition when a round had no quorum in all its attempts: the state is that of the last round.
  Status run(const AskStop& stop = {});

  FederatedServer& server() { return *server_; }

 private:
  Simulation(const FederatedConfig& config, const TrainBase& base, std::string directory, SimulationHooks hooks);

  Status open(const AskStop& stop);
  Status check_run(const AskStop& stop);
  RoundBase below();
  Result<std::vector<ClientUpdate>> collect(int64_t attempt, const AskStop& stop);
  Status finish_round(const RoundReport& report, int64_t up_bytes, int64_t down_bytes, const AskStop& stop);
  Result<std::vector<std::vector<EvalResult>>> evaluate(const AskStop& stop);
  Status save();
  Status save_personal();
  Status write_metrics() const;
  void note(const std::string& text) {
    if (hooks_.on_note) hooks_.on_note(text);
  }
  Status ledger(const std::string& event, const std::string& client, const std::string& reason);

  const FederatedConfig config_;
  const TrainBase base_;
  const std::string directory_;
  SimulationHooks hooks_;
  CheckpointStore store_;
  std::unique_ptr<FederatedServer> server_;
  std::unique_ptr<LocalTraining> training_;
  std::vector<std::string> eligible_;
  double round_loss_ = 0;  // of the updates of a round, weighted
  int64_t round_tokens_ = 0;
};

}  // namespace lk
