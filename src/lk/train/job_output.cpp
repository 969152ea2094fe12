// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_output.h"

#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/write_error.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"

namespace lk {
namespace {

// In a job's directory: the adapter of its best evaluation so far, while it trains, and in it the step of that.
constexpr const char* kBest = "best";
constexpr const char* kBestStep = "step";

}  // namespace

JobOutput::JobOutput(const JobConfig& config, std::string base_name, std::shared_ptr<const ModelWeights> weights,
                     Backend& backend, JobIdentity identity)
    : config_(config),
      base_name_(std::move(base_name)),
      weights_(std::move(weights)),
      backend_(backend),
      identity_(std::move(identity)),
      store_(join_path(config.save.dir, "checkpoints"), CheckpointStore::Options{.keep = config.save.keep}) {}

bool JobOutput::published() const {
  return file_exists(join_path(config_.save.dir, kAdapterWeightsFile)) &&
         file_exists(join_path(config_.save.dir, kAdapterConfigFile));
}

Result<std::vector<std::string>> JobOutput::resume(TrainJob& job) {
  LK_ASSIGN_OR_RETURN(const std::optional<CheckpointStore::Found> newest, store_.newest());
  if (!newest) {
    if (file_exists(join_path(config_.save.dir, kAdapterWeightsFile)))
      return already_exists("{} holds an adapter that is not of this run; name another directory, or remove it",
                            config_.save.dir);
    return std::vector<std::string>();
  }
  LK_RETURN_IF_ERROR(read_job_state(job, backend_, identity_, newest->path));
  saved_step_ = job.progress().step;
  std::vector<std::string> notes = newest->skipped;
  notes.push_back(job.state() == TrainState::kRunning ? fmt::format("goes on from step {}", saved_step_)
                                                      : fmt::format("ended already ({}); to train it anew, remove {}",
                                                                    to_string(job.state()), config_.save.dir));
  return notes;
}

Status JobOutput::save(const Adapter& adapter, const std::string& directory) const {
  return save_adapter(
      adapter, weights_->config, directory,
      {.dtype = config_.save.dtype == TrainDtype::kBf16 ? DType::kBF16 : DType::kF32, .base_model_name = base_name_});
}

void JobOutput::keep_best(const TrainJob& job, std::shared_ptr<const Adapter> adapter) {
  best_ = std::move(adapter);
  (void)save_best(job);
}

Status JobOutput::save_best(const TrainJob& job) {
  if (!best_) return Status();
  const std::string directory = join_path(config_.save.dir, kBest), step_file = join_path(directory, kBestStep);
  // The step is there only beside the adapter it belongs to.
  std::error_code error;
  std::filesystem::remove(step_file, error);
  if (error)
    return Status(write_error_code(error.value()), fmt::format("cannot remove {}: {}", step_file, error.message()));
  LK_RETURN_IF_ERROR(save(*best_, directory));
  LK_RETURN_IF_ERROR(write_file_atomic(step_file, fmt::format("{}\n", job.progress().best_step)));
  best_.reset();
  return Status();
}

// Not so when it was found while keep_best was off.
bool JobOutput::has_best(const TrainJob& job) const {
  const Result<std::string> step = read_file(join_path(join_path(config_.save.dir, kBest), kBestStep), 64);
  return step.ok() && *step == fmt::format("{}\n", job.progress().best_step);
}

Status JobOutput::checkpoint(TrainJob& job) {
  const int64_t step = job.progress().step;
  LK_RETURN_IF_ERROR(save_best(job));
  if (step == saved_step_) return Status();
  std::vector<CheckpointPart> parts = job_state_parts(job, backend_, identity_);
  parts.push_back({{kAdapterWeightsFile, kAdapterConfigFile},
                   [&](const std::string& directory) { return save(job.adapter().snapshot(), directory); }});
  LK_RETURN_IF_ERROR(store_.save(step, parts));
  saved_step_ = step;
  return Status();
}

Result<std::string> JobOutput::publish(TrainJob& job) {
  LK_RETURN_IF_ERROR(checkpoint(job));
  const int64_t best = job.progress().best_step;
  const bool earlier = keeps_best() && best >= 0 && best < job.progress().step;
  if (!earlier || !has_best(job)) {
    LK_RETURN_IF_ERROR(save(job.adapter().snapshot(), config_.save.dir));
    return earlier ? fmt::format("the adapter of step {}, its best evaluation, was not kept; the last one is", best)
                   : std::string();
  }
  LK_ASSIGN_OR_RETURN(const auto adapter, load_adapter(config_.name, join_path(config_.save.dir, kBest),
                                                       weights_->config, weights_->checkpoint.get()));
  LK_RETURN_IF_ERROR(save(*adapter, config_.save.dir));
  return fmt::format("keeps the adapter of step {}, its best evaluation", best);
}

}  // namespace lk
