// SPDX-License-Identifier: Apache-2.0
// TrainRun: a run of `lorikeet train` from its configuration to PEFT directories: checks everything before anything
// starts, goes on from checkpoints, trains all jobs together, saves. The program around it brings the base, and hears
// what happens.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/train/job_config.h"
#include "lk/train/job_data.h"
#include "lk/train/run_plan.h"
#include "lk/train/train_base.h"
#include "lk/train/trainer.h"

namespace lk {

// Answers of an adapter to the questions of an evaluation set.
struct ExactMatch {
  int64_t matches = 0, answers = 0;
};
struct TrainRunHooks {
  std::function<void(TrainJob& job, const StepEvent& event)> on_step;
  std::function<void(TrainJob& job, const EvalEvent& event)> on_eval;
  std::function<void(TrainJob& job)> on_end;
  std::function<void(TrainJob& job, const std::string& message)> on_note;  // resumed, checkpoint written, paused
  // How many of the records the adapter answers exactly; empty: never asked. The adapter's name is no other adapter's.
  std::function<Result<ExactMatch>(const SampleReader& eval, std::shared_ptr<const Adapter> adapter)> exact_match;
};

class TrainRun {
 public:
  // Opens and surveys all data, makes or loads the adapters, resumes from checkpoints. Errors name the job; kCancelled
  // when `stop`, asked all the time, said so: then nothing has begun.
  static Result<std::unique_ptr<TrainRun>> create(const RunConfig& config, const TrainBase& base, TrainRunHooks hooks,
                                                  const AskStop& stop = {});
  ~TrainRun();

  const RunConfig& config() const;
  const TrainMemory& memory() const;
  size_t num_jobs() const;
  TrainJob& job(size_t index);
  const JobForecast& forecast(size_t index) const;
  const JobConfig& job_config(const TrainJob& job) const;

  // Makes the jobs' directories and keeps other runs out of them. Before this nothing is written.
  Status claim();
  // Requires: claim(). Trains until all jobs have ended, or `stop` says so: then each running job is checkpointed. An
  // error when a job failed or could not be saved; the others are done all the same.
  Status train(const std::function<bool()>& stop);

 private:
  class Impl;
  explicit TrainRun(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Renders the first `count` samples of each job's first epoch, as training would see them.
Result<std::string> preview_run(const RunConfig& config, const TrainBase& base, int64_t count, bool color,
                                const AskStop& stop = {});

}  // namespace lk
