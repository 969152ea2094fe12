// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_output.h"

#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/write_error.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"

namespace lk {
namespace {

// In a job's directory: where it goes on from, and the adapter of its best evaluation so far, by the step of that.
constexpr const char* kCheckpoints = "checkpoints";
constexpr const char* kBest = "best";

}  // namespace

JobOutput::JobOutput(const JobConfig& config, std::string base_name, std::shared_ptr<const ModelWeights> weights,
                     Backend& backend, JobIdentity identity)
    : config_(config),
      base_name_(std::move(base_name)),
      weights_(std::move(weights)),
      backend_(backend),
      identity_(std::move(identity)),
      store_(join_path(config.save.dir, kCheckpoints), CheckpointStore::Options{.keep = config.save.keep}),
      best_store_(join_path(config.save.dir, kBest), CheckpointStore::Options{.keep = 1}) {}

Status JobOutput::claim() {
  LK_RETURN_IF_ERROR(store_.claim());
  return keeps_best() ? best_store_.claim() : Status();
}

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

CheckpointPart JobOutput::adapter_part(const Adapter& adapter) const {
  return {{kAdapterWeightsFile, kAdapterConfigFile},
          [&](const std::string& directory) { return save(adapter, directory); }};
}

void JobOutput::keep_best(const TrainJob& job, std::shared_ptr<const Adapter> adapter) {
  best_ = std::move(adapter);
  (void)save_best(job);
}

Status JobOutput::save_best(const TrainJob& job) {
  if (!best_) return Status();
  LK_RETURN_IF_ERROR(best_store_.save(job.progress().best_step, {adapter_part(*best_)}));
  best_.reset();
  return Status();
}

Result<std::shared_ptr<const Adapter>> JobOutput::load_best(const TrainJob& job) const {
  LK_ASSIGN_OR_RETURN(const std::optional<CheckpointStore::Found> newest, best_store_.newest());
  if (!newest || newest->step != job.progress().best_step) return not_found("keep_best was off");
  return load_adapter(config_.name, newest->path, weights_->config, weights_->checkpoint.get());
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
  if (!keeps_best() || best < 0 || best >= job.progress().step) {
    LK_RETURN_IF_ERROR(save(job.adapter().snapshot(), config_.save.dir));
    return std::string();
  }
  const Result<std::shared_ptr<const Adapter>> adapter = load_best(job);
  if (adapter.ok()) {
    LK_RETURN_IF_ERROR(save(**adapter, config_.save.dir));
    return fmt::format("keeps the adapter of step {}, its best evaluation", best);
  }
  LK_RETURN_IF_ERROR(save(job.adapter().snapshot(), config_.save.dir));
  return fmt::format("the adapter of step {}, its best evaluation, was not kept ({}); the last one is", best,
                     adapter.status().message());
}

}  // namespace lk
