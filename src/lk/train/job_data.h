// SPDX-License-Identifier: Apache-2.0
// JobData: the records a job trains on and those it is judged by, opened and, before anything is trained, read through
// once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lk/train/job_config.h"
#include "lk/train/train_base.h"
#include "lk/train/trainer.h"

namespace lk {

struct JobData {
  SampleReader train;
  std::vector<EvalSet> eval;
  std::string digest;  // of all its files
};

// What a job will do, known before it starts.
struct JobForecast {
  DataCounts train;
  std::vector<DataCounts> eval;  // of one epoch, by evaluation set
  int64_t total_steps = 0;
  int64_t parameters = 0;  // trained
  int64_t state_bytes = 0;

  int64_t longest_sample() const;
  int64_t eval_samples() const;
};

// Opens and reads data for all jobs of a run; what several of them read in the same way is read once. `stop` may end
// each call with kCancelled.
class DataSource {
 public:
  DataSource(const TrainBase& base, AskStop stop) : base_(base), stop_(stop), files_(stop), surveys_(stop) {}

  Result<JobData> open(const JobConfig& job);
  // Counts, and the steps that they mean. A batch of `train` becomes at most an epoch: more would be the same samples
  // again, and very many a step that never ends.
  Result<JobForecast> survey(const JobData& data, const EvalSpec& eval, TrainSpec& train);

 private:
  Result<int64_t> total_steps(const TrainSpec& spec, const DataCounts& epoch, const SampleReader& data);
  Status check_exercises(const SampleReader& data) const;

  const TrainBase& base_;
  const AskStop stop_;
  JsonlFiles files_;
  Surveys surveys_;
};

}  // namespace lk
