// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_data.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Of the choice of held-out records: the same for all jobs, so that a sweep over seeds is judged on the same ones.
constexpr uint64_t kSplitSeed = 0;

}  // namespace

int64_t JobForecast::longest_sample() const {
  int64_t longest = train.longest;
  for (const DataCounts& counts : eval) longest = std::max(longest, counts.longest);
  return longest;
}

int64_t JobForecast::eval_samples() const {
  int64_t samples = 0;
  for (const DataCounts& counts : eval) samples += counts.samples;
  return samples;
}

Result<JobData> DataSource::open(const JobConfig& job) {
  const DataSpec& spec = job.data;
  LK_ASSIGN_OR_RETURN(const auto file, files_.open(spec.path, spec.format));
  RenderOptions render = spec.render;
  render.answer_ends = base_.end_tokens;
  if (base_.context > 0 && (render.max_length == 0 || render.max_length > base_.context))
    render.max_length = base_.context;
  const auto end = base_.end_tokens.empty() ? std::nullopt : std::optional(base_.end_tokens.front());
  const auto renderer = std::make_shared<Renderer>(base_.tokenizer, base_.templates, end, render);
  std::string digest = file->digest();
  RecordSubset train = all_records(file);
  std::vector<EvalSet> eval;
  const auto add_eval = [&](const std::string& name, RecordSubset records) {
    eval.push_back({name, SampleReader(std::move(records), renderer, {.shuffle = false, .skip_bad = spec.skip_bad})});
  };
  if (spec.eval_split > 0) {
    LK_ASSIGN_OR_RETURN(TrainEvalSplit split, split_records(file, spec.eval_split, kSplitSeed));
    train = std::move(split.train);
    add_eval(spec.path, std::move(split.eval));
  }
  for (const std::string& path : spec.eval_path) {
    LK_ASSIGN_OR_RETURN(const auto held, files_.open(path, spec.format));
    digest += "+" + held->digest();
    add_eval(path, all_records(held));
  }
  SampleReader reader(std::move(train), renderer,
                      {.shuffle = spec.shuffle, .seed = job.train.seed, .skip_bad = spec.skip_bad});
  return JobData{std::move(reader), std::move(eval), std::move(digest)};
}

Result<int64_t> DataSource::total_steps(const TrainSpec& spec, const DataCounts& epoch, const SampleReader& data) {
  if (spec.steps > 0) return spec.steps;
  double per_epoch = static_cast<double>(epoch.samples) / static_cast<double>(std::max<int64_t>(spec.batch_samples, 1));
  if (spec.batch_tokens > 0) {
    LK_ASSIGN_OR_RETURN(const int64_t steps, surveys_.steps_of_epoch(data, spec.batch_tokens));
    per_epoch = static_cast<double>(steps);
  }
  return std::max<int64_t>(1, std::llround(std::ceil(per_epoch * spec.epochs - 1e-9)));
}

// Every record has an answer to compare with, and there is one.
Status DataSource::check_exercises(const SampleReader& data) const {
  bool any = false;
  for (int64_t index = 0; index < data.num_records(); ++index) {
    LK_RETURN_IF_ERROR(check_stop(stop_));
    LK_ASSIGN_OR_RETURN(const std::optional<Exercise> exercise, data.exercise(index));
    any |= exercise.has_value();
  }
  return any ? Status() : failed_precondition("no record of {} is a question", data.records().file->path());
}

Result<JobForecast> DataSource::survey(const JobData& data, const EvalSpec& eval, TrainSpec& train) {
  JobForecast forecast;
  LK_ASSIGN_OR_RETURN(forecast.train, surveys_.survey(data.train));
  for (const EvalSet& set : data.eval) {
    const Result<DataCounts> held = surveys_.survey(set.data);
    if (!held.ok()) return held.status().with_context("evaluation");
    forecast.eval.push_back(*held);
    if (eval.exact_match) LK_RETURN_IF_ERROR(check_exercises(set.data).with_context("eval.exact_match"));
  }
  train.batch_samples = std::min(train.batch_samples, forecast.train.samples);
  train.batch_tokens = std::min(train.batch_tokens, forecast.train.tokens);
  LK_ASSIGN_OR_RETURN(forecast.total_steps, total_steps(train, forecast.train, data.train));
  if (train.warmup_steps > forecast.total_steps)
    return invalid_argument("train.warmup_steps is {}, and all steps are only {}", train.warmup_steps,
                            forecast.total_steps);
  return forecast;
}

}  // namespace lk
