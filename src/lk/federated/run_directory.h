// SPDX-License-Identifier: Apache-2.0
// RunDirectory: what a federated run leaves on disk, whoever brings its updates:
//
//   run.json               what the run is; another run is refused
//   rounds/checkpoint-N/   the state after round N and the model as a PEFT directory, complete or not there at all
//   latest                 link to the newest of them
//   metrics.jsonl          one line a round, from the state: the same bytes however often the run was interrupted
//   ledger.jsonl           what happened, with times: who was asked, who answered, who was refused and why
//   noise.key, sampling.key   with privacy (privacy_ledger.h): secrets, of the server alone
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/dataset/dataset.h"
#include "lk/federated/server.h"
#include "lk/train/checkpoint_file.h"

namespace lk {

class RunDirectory {
 public:
  // For tests: asked before every operation, those of CheckpointStore and "write run.json", "ledger EVENT", "write
  // noise key", "erase noise key", "link latest", "write metrics"; a failure stands for the operation's own.
  using Fault = std::function<Status(std::string_view operation)>;
  RunDirectory(const FederatedConfig& config, std::string directory, Fault fault = {},
               NoiseSource noise = NoiseSource::kSecret)
      : config_(config),
        directory_(std::move(directory)),
        fault_(fault),
        noise_(noise),
        store_(path("rounds"), {.keep = config.keep, .fault = std::move(fault)}) {}

  // Takes the directory for this process and this run, and puts the server where the newest round left it; what is to
  // be said of that. `data`: digests of the clients' records, of those that are known. kFailedPrecondition when another
  // process writes to it, or another run did.
  Result<std::vector<std::string>> open(FederatedServer& server, const ModelConfig& model,
                                        const std::string& base_directory,
                                        const std::map<std::string, std::string>& data, const AskStop& stop = {});
  const std::string& base_digest() const { return base_digest_; }  // after open()

  Status ledger(int64_t round, const std::string& event, const std::string& client = "",
                const std::string& reason = "");
  // What the files of the run say happened, and the ledger may lack because of a kill between the two. Of a round whose
  // attempt failed, only lines after that count. Without a round: whichever it was in.
  struct Happened {
    std::string event, client;
    auto operator<=>(const Happened&) const = default;
  };
  Status complete_ledger(std::optional<int64_t> round, const std::vector<Happened>& happened);
  // The server's state, as the round that is over. What is to be said of it.
  Result<std::vector<std::string>> save(FederatedServer& server, const ModelConfig& model);

  std::string path(std::string_view name) const;

 private:
  Status before(std::string_view operation) const { return fault_ ? fault_(operation) : Status(); }
  Status check_run(const std::string& text) const;
  Status open_privacy(FederatedServer& server, std::vector<std::string>& notes);
  Status link_latest(int64_t round, std::vector<std::string>& notes) const;
  Status write_metrics(const FederatedServer& server) const;

  const FederatedConfig config_;
  const std::string directory_;
  const Fault fault_;
  const NoiseSource noise_;
  CheckpointStore store_;
  std::shared_ptr<PrivacyLedger> privacy_;
  std::string base_digest_;
};

// What the run in a directory is, from its run.json; `base` is empty.
Result<FederatedConfig> read_run_config(const std::string& directory);

}  // namespace lk
