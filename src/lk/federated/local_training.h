// SPDX-License-Identifier: Apache-2.0
// LocalTraining: what clients do in a round, on this machine: their steps, all of them as segments of one joint batch
// over one base, and evaluations. What a client's update becomes does not depend on who trains beside it, bit for bit
// (docs/design/training.md, "Together is alone").
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/federated/server.h"
#include "lk/train/job_data.h"

namespace lk {

// What lies below the adapters of a round, for all clients alike. Views of what the caller keeps.
struct RoundBase {
  const ModuleFactors* overlay = nullptr;
  const SparseValues* sparse = nullptr;  // below the adapters, or where clients start from: LocalTask::sparse
  const SparseMask* mask = nullptr;      // of them
};

struct ClientTask {
  std::string client;
  LocalTask task;
};
struct ClientResult {
  std::string client;
  Status failure;  // then there is no update
  ClientUpdate update;
  double loss = 0;  // mean over the steps
  int64_t tokens = 0;
};
struct EvalResult {
  std::string file;
  double loss = 0, accuracy = 0;  // as in EvalFigures
  int64_t loss_tokens = 0;
};

class LocalTraining {
 public:
  // Opens and surveys the data of all clients and of the evaluation: errors name the client. kCancelled by `stop`.
  static Result<std::unique_ptr<LocalTraining>> create(const FederatedConfig& config, const TrainBase& base,
                                                       const AskStop& stop = {});

  int64_t num_examples(const std::string& client) const { return data_.at(client).counts.samples; }
  // SHA-256 of each client's records, hex.
  std::map<std::string, std::string> digests() const;

  // One result per task, in their order. A client whose training fails has a failure; what concerns all (memory, data
  // that changed, `stop`) is an error.
  Result<std::vector<ClientResult>> train(std::span<const ClientTask> tasks, const RoundBase& below,
                                          const AskStop& stop);
  // Of each evaluation file, in the configuration's order.
  Result<std::vector<EvalResult>> evaluate(const LocalTask& task, const RoundBase& below, const AskStop& stop);

 private:
  struct ClientData {
    DataCounts counts;
    TrainSpec train;  // with a batch of at most an epoch
    std::string digest;
  };
  LocalTraining(const FederatedConfig& config, const TrainBase& base, const AskStop& stop)
      : config_(config), base_(base), source_(base, stop) {}

  Status open(const AskStop& stop);
  JobConfig job_of(const ClientSpec& client, int64_t round) const;
  Result<std::shared_ptr<const BaseOverlay>> make_overlay(const RoundBase& below, bool sparse_is_below);
  Result<TrainableOptions> options_of(const LocalTask& task, const RoundBase& below,
                                      std::shared_ptr<const BaseOverlay> overlay);
  double rate_at(const LocalTask& task, const TrainSpec& spec, int64_t step) const;
  Status train_group(std::span<const ClientTask> tasks, const RoundBase& below,
                     const std::shared_ptr<const BaseOverlay>& overlay, const AskStop& stop,
                     std::vector<ClientResult>& results);

  const FederatedConfig config_;
  const TrainBase base_;
  DataSource source_;
  std::map<std::string, ClientData> data_;
  std::vector<EvalSet> eval_;
  const SparseMask* uploaded_ = nullptr;  // what device_mask_ is of
  std::shared_ptr<const DeviceMask> device_mask_;
};

}  // namespace lk
