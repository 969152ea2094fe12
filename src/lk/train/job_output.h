// SPDX-License-Identifier: Apache-2.0
// JobOutput: what a job leaves in its directory: checkpoints from which it goes on, the adapter of its best evaluation
// while it trains, and the finished adapter.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lk/train/checkpoint_file.h"
#include "lk/train/job_config.h"
#include "lk/train/job_state.h"

namespace lk {

class JobOutput {
 public:
  // base_name: the base as the configuration names it, for the adapter's own file.
  JobOutput(const JobConfig& config, std::string base_name, std::shared_ptr<const ModelWeights> weights,
            Backend& backend, JobIdentity identity);

  // Puts the job where its newest checkpoint left it, if there is one. What it says of that, for people.
  // kAlreadyExists when the directory holds another adapter.
  Result<std::vector<std::string>> resume(TrainJob& job);
  // Makes the directories and keeps other runs out of them. Before this nothing is written.
  Status claim();
  // Whether the finished adapter is there.
  bool published() const;
  int64_t saved_step() const { return saved_step_; }  // of the newest checkpoint, -1 = none

  // A checkpoint of this step that was made before the evaluation is none.
  void evaluated(int64_t step) {
    if (saved_step_ == step) saved_step_ = -1;
  }
  // The adapter of an evaluation that is the best so far. What fails is tried again with the next checkpoint, which
  // waits for it: no checkpoint says that an evaluation was the best before its adapter is on disk.
  void keep_best(const TrainJob& job, std::shared_ptr<const Adapter> adapter);
  bool keeps_best() const { return config_.eval.keep_best && config_.eval.every > 0; }
  // All that the job needs to go on, and its adapter as it is now, ready to serve.
  Status checkpoint(TrainJob& job);
  // The last checkpoint, and the adapter: the job's, or that of its best evaluation. What is to be said of that.
  Result<std::string> publish(TrainJob& job);

 private:
  Status save_best(const TrainJob& job);
  Status save(const Adapter& adapter, const std::string& directory) const;
  CheckpointPart adapter_part(const Adapter& adapter) const;
  // The adapter of the best evaluation so far; not there when that was found while keep_best was off, or when its files
  // are not what they were written as.
  Result<std::shared_ptr<const Adapter>> load_best(const TrainJob& job) const;

  const JobConfig& config_;
  const std::string base_name_;
  const std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  const JobIdentity identity_;
  CheckpointStore store_, best_store_;
  std::shared_ptr<const Adapter> best_;  // until it is on disk
  int64_t saved_step_ = -1;
};

}  // namespace lk
