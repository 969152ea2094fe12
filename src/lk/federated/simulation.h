// SPDX-License-Identifier: Apache-2.0
// Simulation: a whole federated run in one process. All it needs to go on is in its directory after each round
// (run_directory.h). With fedsa each client's adapter is in personal/NAME in the end.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/federated/local_training.h"
#include "lk/federated/run_directory.h"

namespace lk {

struct SimulationHooks {
  std::function<void(const std::string& line)> on_round;  // as it goes to metrics.jsonl
  std::function<void(const std::string& text)> on_note;
  // For tests: what arrives of an update; empty: the update.
  std::function<std::vector<ClientUpdate>(const ClientUpdate&, int64_t attempt)> deliver;
  RunDirectory::Fault fault;
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
  RoundBase below();
  Result<std::vector<ClientUpdate>> collect(int64_t attempt, const AskStop& stop);
  Status finish_round(const RoundReport& report, int64_t up_bytes, int64_t down_bytes, const AskStop& stop);
  Result<std::vector<std::vector<EvalResult>>> evaluate(const AskStop& stop);
  Status save_personal();
  void note(const std::string& text) {
    if (hooks_.on_note) hooks_.on_note(text);
  }
  Status ledger(const std::string& event, const std::string& client, const std::string& reason);

  const FederatedConfig config_;
  const TrainBase base_;
  SimulationHooks hooks_;
  RunDirectory files_;
  std::unique_ptr<FederatedServer> server_;
  std::unique_ptr<LocalTraining> training_;
  std::vector<std::string> eligible_;
  double round_loss_ = 0;  // of the updates of a round, weighted
  int64_t round_tokens_ = 0;
};

}  // namespace lk
