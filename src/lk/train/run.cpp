// SPDX-License-Identifier: Apache-2.0
#include "lk/train/run.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/base/memory_limits.h"
#include "lk/base/rng.h"
#include "lk/base/sha256.h"
#include "lk/dataset/preview.h"
#include "lk/lora_tools/initial.h"
#include "lk/train/eva.h"
#include "lk/train/job_output.h"

namespace lk {
namespace {
namespace json = boost::json;
using Clock = std::chrono::steady_clock;

// Of the choice of held-out records: the same for all jobs, so that a sweep over seeds is judged on the same ones.
constexpr uint64_t kSplitSeed = 0;

// A job whose checkpoint could not be written tries again after so long.
constexpr std::chrono::seconds kSaveRetry{15};
constexpr std::chrono::milliseconds kWait{100};

// SHA-256 of all weights and of what says how they are used: what makes a base this base.
Result<std::string> base_digest(const std::string& directory) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    // What text becomes counts as well: the tokenizer, the template, the end token.
    if (!entry.is_regular_file(error)) continue;
    if (name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".jinja"))
      files.push_back(entry.path().string());
  }
  if (error) return io_error("{}: {}", directory, error.message());
  std::ranges::sort(files);
  Sha256 sha;
  std::vector<char> piece(1 << 20);  // read, not mapped: the weights are in memory already, packed
  for (const std::string& file : files) {
    std::ifstream in(file, std::ios::binary);
    while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0)
      sha.update(piece.data(), static_cast<size_t>(in.gcount()));
    if (in.bad() || !in.eof()) return io_error("{} cannot be read", file);
  }
  return to_hex(sha.finish());
}

// Names of modules hold letters, digits, '_' and '.'; what holds more is a regular expression.
ModuleSelector selector_of(const std::vector<std::string>& entries) {
  using Kind = ModuleSelector::Kind;
  if (entries.empty()) return {};
  if (entries == std::vector<std::string>{"all-linear"}) return {.kind = Kind::kAllLinear, .names = {}, .pattern = {}};
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; };
  if (entries.size() == 1 && !std::ranges::all_of(entries[0], plain))
    return {.kind = Kind::kRegex, .names = {}, .pattern = entries[0]};
  return {.kind = Kind::kList, .names = entries, .pattern = {}};
}

AdapterConfig peft_config(const AdapterSpec& spec, const std::string& base) {
  AdapterConfig config;
  config.rank = spec.rank;
  config.alpha = spec.alpha;
  config.use_rslora = spec.use_rslora;
  config.use_dora = spec.kind == AdapterKind::kDora;
  config.lora_bias = spec.lora_bias;
  config.dropout = spec.dropout.value_or(0);
  config.rank_pattern = spec.rank_pattern;
  config.alpha_pattern = spec.alpha_pattern;
  config.layers_to_transform = spec.layers_to_transform;
  config.modules_to_save = spec.modules_to_save;
  if (!spec.trainable_tokens.empty()) config.trainable_token_indices["embed_tokens"] = spec.trainable_tokens;
  config.target_modules = selector_of(spec.target_modules);
  config.exclude_modules = selector_of(spec.exclude_modules);
  config.base_model_name = base;
  return config;
}

int64_t modules_of(const AdapterSpec& spec) { return spec.kind == AdapterKind::kMultiLora ? spec.num_modules : 0; }

double dropout_of(const AdapterSpec& spec, const Adapter& start) { return spec.dropout.value_or(start.config.dropout); }

bool freezes(const AdapterSpec& spec, const char* factor) {
  return std::ranges::find(spec.freeze, factor) != spec.freeze.end();
}

// The settings that decide what a job computes, as JSON: not where its files are, what it saves, how it is watched, nor
// how much room it gets beside others.
std::string identity_options(const RunConfig& run, const JobConfig& job, const JobForecast& forecast,
                             const std::string& initial_digest) {
  json::object object = job_config_json(job);
  for (const char* key : {"save", "name", "eval"}) object.erase(key);
  for (const char* key : {"path", "eval_path"}) object.at("data").as_object().erase(key);
  object.at("train").as_object().erase("weight");
  json::object& adapter = object.at("adapter").as_object();
  adapter["init_from"] = initial_digest;
  // EVA looks at its data block by block.
  if (job.adapter.init == AdapterInit::kEva) adapter["block_tokens"] = run.block_tokens;
  // A limit that no sample reaches is none, whatever the block is: the parser's default.
  const auto cut = [](const DataCounts& counts) { return counts.truncated + counts.dropped + counts.bad > 0; };
  if (!cut(forecast.train) && !cut(forecast.eval)) object.at("data").as_object()["max_length"] = 0;
  object["dtype"] = run.dtype == TrainDtype::kF32 ? "f32" : "bf16";
  return json_text(object);
}

struct JobData {
  SampleReader train;
  std::optional<SampleReader> eval;
  std::string digest;
};

class DataSource {
 public:
  explicit DataSource(const TrainBase& base) : base_(base) {}

  Result<JobData> open(const JobConfig& job) {
    const DataSpec& spec = job.data;
    LK_ASSIGN_OR_RETURN(const auto file, files_.open(spec.path, spec.format));
    RenderOptions render = spec.render;
    render.answer_ends = base_.end_tokens;
    if (base_.context > 0 && (render.max_length == 0 || render.max_length > base_.context))
      render.max_length = base_.context;
    const auto end = base_.end_tokens.empty() ? std::nullopt : std::optional(base_.end_tokens.front());
    const auto renderer = std::make_shared<Renderer>(base_.tokenizer, base_.chat_template, end, render);
    std::string digest = file->digest();
    RecordSubset train = all_records(file);
    std::optional<RecordSubset> eval;
    if (spec.eval_split > 0) {
      LK_ASSIGN_OR_RETURN(TrainEvalSplit split, split_records(file, spec.eval_split, kSplitSeed));
      train = std::move(split.train);
      eval = std::move(split.eval);
    } else if (!spec.eval_path.empty()) {
      LK_ASSIGN_OR_RETURN(const auto held, files_.open(spec.eval_path, spec.format));
      digest += "+" + held->digest();
      eval = all_records(held);
    }
    JobData data{SampleReader(std::move(train), renderer,
                              {.shuffle = spec.shuffle, .seed = job.train.seed, .skip_bad = spec.skip_bad}),
                 std::nullopt, std::move(digest)};
    if (eval)
      data.eval.emplace(std::move(*eval), renderer, SampleReader::Options{.shuffle = false, .skip_bad = spec.skip_bad});
    return data;
  }

 private:
  const TrainBase& base_;
  JsonlFiles files_;
};

Result<int64_t> total_steps(const TrainSpec& spec, const DataCounts& epoch, const SampleReader& data,
                            Surveys& surveys) {
  if (spec.steps > 0) return spec.steps;
  double per_epoch = static_cast<double>(epoch.samples) / static_cast<double>(std::max<int64_t>(spec.batch_samples, 1));
  if (spec.batch_tokens > 0) {
    LK_ASSIGN_OR_RETURN(const int64_t steps, surveys.steps_of_epoch(data, spec.batch_tokens));
    per_epoch = static_cast<double>(steps);
  }
  return std::max<int64_t>(1, std::llround(std::ceil(per_epoch * spec.epochs - 1e-9)));
}

// Every record has an answer to compare with, and there is one.
Status check_exercises(const SampleReader& data) {
  bool any = false;
  for (int64_t index = 0; index < data.num_records(); ++index) {
    LK_ASSIGN_OR_RETURN(const std::optional<Exercise> exercise, data.exercise(index));
    any |= exercise.has_value();
  }
  return any ? Status() : failed_precondition("no record of {} is a question", data.records().file->path());
}

}  // namespace

class TrainRun::Impl : public TrainObserver {
 public:
  Impl(const RunConfig& config, const TrainBase& base, TrainRunHooks hooks)
      : config_(config), base_(base), hooks_(std::move(hooks)), data_(base_) {}

  Status open();
  Status claim();
  Status train(const std::function<bool()>& stop);

  void on_step(TrainJob& job, const StepEvent& event) override {
    if (hooks_.on_step) hooks_.on_step(job, event);
  }
  void on_eval(TrainJob& job, const EvalEvent& event) override;
  void on_end(TrainJob& job) override { ended_.push_back(&job); }

  struct Entry {
    JobConfig config;
    JobForecast forecast;
    TrainJob* job = nullptr;
    std::optional<JobOutput> output;
    // A job that waits for room on the disk, to go on or to be finished.
    bool unfinished = false;
    Clock::time_point save_after;
    Status failure;
  };
  Entry& entry(const TrainJob& job) { return *entries_[index_of(job)]; }
  size_t index_of(const TrainJob& job) const {
    return static_cast<size_t>(std::ranges::find(entries_, &job, [](const auto& e) { return e->job; }) -
                               entries_.begin());
  }

  const RunConfig config_;
  const TrainBase base_;
  TrainRunHooks hooks_;
  DataSource data_;
  RunPlan plan_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unique_ptr<TrainPass> pass_;
  std::unique_ptr<Trainer> trainer_;

 private:
  struct Start {
    std::shared_ptr<const Adapter> adapter;
    bool frozen_half = false;
  };
  struct Opened {
    std::unique_ptr<Entry> entry;
    JobData data;
    Start start;
  };
  Result<InitialAdapter> make_initial(const JobConfig& config) const;
  Result<Start> initial(const JobConfig& config);
  static TrainableOptions trainable_options(const JobConfig& config, const Start& start);
  Status plan(const std::vector<Opened>& opened);
  Status check_block(const std::vector<Opened>& opened) const;
  Status make_job(Opened& item, const std::string& base_digest, std::vector<std::unique_ptr<TrainJob>>& jobs);
  void note(TrainJob& job, const std::string& message) {
    if (hooks_.on_note) hooks_.on_note(job, message);
  }
  void checkpoint_or_pause(Entry& entry);
  void give_up(Entry& entry);
  void retry_paused();
  static Status check_end(const Entry& entry);
  Status finish(Entry& entry);
  void finish_or_wait(Entry& entry);
  static bool waits(const Entry& entry) { return entry.unfinished || entry.job->state() == TrainState::kPaused; }

  std::vector<TrainJob*> ended_;
};

// --- Opening

Result<InitialAdapter> TrainRun::Impl::make_initial(const JobConfig& config) const {
  const AdapterSpec& spec = config.adapter;
  return make_initial_adapter(base_.weights->config, peft_config(spec, config_.base), spec.init, modules_of(spec),
                              config.train.seed, *base_.weights->checkpoint);
}

Result<TrainRun::Impl::Start> TrainRun::Impl::initial(const JobConfig& config) {
  const AdapterSpec& spec = config.adapter;
  const ModelWeights& weights = *base_.weights;
  if (!spec.init_from.empty()) {
    LK_ASSIGN_OR_RETURN(const auto loaded,
                        load_adapter(config.name, spec.init_from, weights.config, weights.checkpoint.get()));
    return Start{loaded, loaded->config.base_change != BaseChange::kNone};
  }
  for (const int64_t layer : spec.layers_to_transform)
    if (layer >= weights.config.num_layers)
      return invalid_argument("adapter.layers_to_transform names layer {}; the base has {}, from 0 on", layer,
                              weights.config.num_layers);
  LK_ASSIGN_OR_RETURN(InitialAdapter made, make_initial(config));
  return Start{std::make_shared<Adapter>(std::move(made.adapter)), made.frozen_half};
}

TrainableOptions TrainRun::Impl::trainable_options(const JobConfig& config, const Start& start) {
  return {.num_modules = config.adapter.init_from.empty() ? modules_of(config.adapter) : 0,
          .freeze_a = freezes(config.adapter, "A"),
          .freeze_b = freezes(config.adapter, "B"),
          .frozen_half = start.frozen_half,
          .dropout = dropout_of(config.adapter, *start.adapter),
          .dropout_seed = mix64(config.train.seed)};
}

Status TrainRun::Impl::open() {
  std::vector<Opened> opened;
  Surveys surveys;
  for (const JobConfig& config : config_.jobs) {
    const auto in_job = [&](const Status& status) { return status.with_context("job " + config.name); };
    auto entry = std::make_unique<Entry>();
    entry->config = config;
    Result<JobData> data = data_.open(config);
    if (!data.ok()) return in_job(data.status());
    Result<DataCounts> epoch = surveys.survey(data->train);
    if (!epoch.ok()) return in_job(epoch.status());
    entry->forecast.train = *epoch;
    if (data->eval) {
      Result<DataCounts> held = surveys.survey(*data->eval);
      if (!held.ok()) return in_job(held.status().with_context("evaluation"));
      entry->forecast.eval = *held;
      if (config.eval.exact_match)
        if (const Status asked = check_exercises(*data->eval); !asked.ok())
          return in_job(asked.with_context("eval.exact_match"));
    }
    // A batch is at most an epoch: more would be the same samples again, and very many a step that never ends.
    TrainSpec& train = entry->config.train;
    train.batch_samples = std::min(train.batch_samples, epoch->samples);
    train.batch_tokens = std::min(train.batch_tokens, epoch->tokens);
    Result<int64_t> steps = total_steps(train, *epoch, data->train, surveys);
    if (!steps.ok()) return in_job(steps.status());
    entry->forecast.total_steps = *steps;
    if (train.warmup_steps > *steps)
      return in_job(
          invalid_argument("train.warmup_steps is {}, and all steps are only {}", train.warmup_steps, *steps));
    Result<Start> start = initial(config);
    if (!start.ok()) return in_job(start.status());
    opened.push_back({std::move(entry), std::move(*data), std::move(*start)});
  }
  LK_RETURN_IF_ERROR(plan(opened));
  LK_RETURN_IF_ERROR(check_block(opened));
  LK_ASSIGN_OR_RETURN(pass_, TrainPass::create(base_.weights, *base_.backend, plan_.pass));
  LK_ASSIGN_OR_RETURN(const std::string digest, base_digest(base_.directory));
  std::vector<std::unique_ptr<TrainJob>> jobs;
  for (Opened& item : opened) {
    const std::string name = item.entry->config.name;
    LK_RETURN_IF_ERROR(make_job(item, digest, jobs).with_context("job " + name));
  }
  trainer_ = std::make_unique<Trainer>(*pass_, std::move(jobs), *this);
  for (auto& entry : entries_) {
    const Result<std::vector<std::string>> notes = entry->output->resume(*entry->job);
    if (!notes.ok()) return notes.status().with_context("job " + entry->config.name);
    for (const std::string& text : *notes) note(*entry->job, text);
  }
  return Status();
}

Status TrainRun::Impl::plan(const std::vector<Opened>& opened) {
  std::vector<PlannedJob> jobs;
  for (const Opened& item : opened) {
    const JobConfig& config = item.entry->config;
    LK_ASSIGN_OR_RETURN(const TrainableAdapter::Sizes sizes,
                        TrainableAdapter::sizes(*item.start.adapter, *base_.weights, *base_.backend,
                                                trainable_options(config, item.start)));
    item.entry->forecast.parameters = sizes.parameters;
    item.entry->forecast.state_bytes = sizes.bytes;
    PassNeeds needs = sizes.needs;
    if (config.adapter.init == AdapterInit::kEva)  // which may give a module twice its rank
      for (int64_t& rank : needs.ranks) rank *= 2;
    jobs.push_back({sizes.bytes, sizes.copy_bytes, needs});
  }
  LK_ASSIGN_OR_RETURN(plan_, plan_run(config_, base_.weights, *base_.backend, jobs, read_memory_limits().available));
  return Status();
}

Status TrainRun::Impl::check_block(const std::vector<Opened>& opened) const {
  for (const Opened& item : opened) {
    const int64_t longest = std::max(item.entry->forecast.train.longest, item.entry->forecast.eval.longest);
    if (longest > config_.block_tokens)
      return invalid_argument(
          "job {}: its longest sample has {} tokens and a block {}; raise block_tokens, or set data.max_length",
          item.entry->config.name, longest, config_.block_tokens);
  }
  return Status();
}

Status TrainRun::Impl::make_job(Opened& item, const std::string& digest, std::vector<std::unique_ptr<TrainJob>>& jobs) {
  Entry& entry = *item.entry;
  const JobConfig& config = entry.config;
  if (config.adapter.init_from.empty() && config.adapter.init == AdapterInit::kEva) {
    LK_ASSIGN_OR_RETURN(InitialAdapter made, make_initial(config));
    LK_ASSIGN_OR_RETURN(Adapter with_eva,
                        apply_eva(std::move(made.adapter), *pass_, *base_.backend, *base_.weights, item.data.train));
    item.start.adapter = std::make_shared<Adapter>(std::move(with_eva));
  }
  LK_ASSIGN_OR_RETURN(auto adapter, TrainableAdapter::create(*item.start.adapter, *base_.weights, *base_.backend,
                                                             trainable_options(config, item.start)));
  entry.output.emplace(config, config_.base, base_.weights, *base_.backend,
                       JobIdentity{digest, item.data.digest,
                                   identity_options(config_, config, entry.forecast, item.start.adapter->digest)});
  item.start.adapter.reset();  // its values are parameters now
  const TrainSpec& train = config.train;
  const int64_t steps = entry.forecast.total_steps;
  TrainJobPlan plan{.name = config.name,
                    .share = train.weight,
                    .batch_samples = train.batch_samples,
                    .batch_tokens = train.batch_tokens,
                    .total_steps = steps,
                    .rate = [train, steps](int64_t step) { return learning_rate_at(train, step, steps); },
                    .dials = {.beta1 = train.beta1,
                              .beta2 = train.beta2,
                              .eps = train.eps,
                              .decay = train.weight_decay,
                              .b_rate_ratio = train.loraplus_ratio,
                              .clip = train.clip},
                    .eval_every = config.eval.every,
                    .patience = config.eval.patience,
                    .min_delta = config.eval.min_delta};
  jobs.push_back(std::make_unique<TrainJob>(std::move(plan), std::move(adapter), std::move(item.data.train),
                                            std::move(item.data.eval)));
  entry.job = jobs.back().get();
  entries_.push_back(std::move(item.entry));
  return Status();
}

// --- Training

void TrainRun::Impl::on_eval(TrainJob& job, const EvalEvent& event) {
  Entry& own = entry(job);
  own.output->evaluated(event.step);
  std::shared_ptr<Adapter> now;  // the adapter as it is, made when somebody wants it
  const auto snapshot = [&] {
    if (!now) {
      now = std::make_shared<Adapter>(job.adapter().snapshot());
      now->name = fmt::format("{}@{}", own.config.name, event.step);
    }
    return now;
  };
  if (event.best && own.output->keeps_best()) own.output->keep_best(job, snapshot());
  std::optional<double> exact;
  if (own.config.eval.exact_match && hooks_.exact_match) {
    const Result<double> share = hooks_.exact_match(job, snapshot());
    if (share.ok())
      exact = *share;
    else
      note(job, "exact match: " + share.status().message());
  }
  if (hooks_.on_eval) hooks_.on_eval(job, event, exact);
}

void TrainRun::Impl::checkpoint_or_pause(Entry& entry) {
  const Status status = entry.output->checkpoint(*entry.job);
  if (status.ok()) {
    note(*entry.job, fmt::format("checkpoint of step {}", entry.output->saved_step()));
    return;
  }
  entry.save_after = Clock::now() + kSaveRetry;
  entry.failure = status;
  if (status.code() != StatusCode::kIoError) return give_up(entry);
  entry.job->pause(status);
  note(*entry.job, fmt::format("paused at step {}, because it could not be saved: {}", entry.job->progress().step,
                               status.message()));
}

// What cannot be saved however long one waits is no use training.
void TrainRun::Impl::give_up(Entry& entry) {
  entry.job->fail(entry.failure);
  if (hooks_.on_end) hooks_.on_end(*entry.job);
}

void TrainRun::Impl::retry_paused() {
  for (auto& entry : entries_) {
    if (!waits(*entry) || Clock::now() < entry->save_after) continue;
    if (entry->unfinished) {
      finish_or_wait(*entry);
      continue;
    }
    const Status status = entry->output->checkpoint(*entry->job);
    entry->save_after = Clock::now() + kSaveRetry;
    if (!status.ok()) {
      entry->failure = status;
      if (status.code() != StatusCode::kIoError) give_up(*entry);
      continue;
    }
    entry->failure = Status();
    entry->job->unpause();
    note(*entry->job, fmt::format("saved at step {}; goes on", entry->output->saved_step()));
  }
}

// Whether what the job learnt is worth keeping.
Status TrainRun::Impl::check_end(const Entry& entry) {
  const TrainJob& job = *entry.job;
  if (job.state() == TrainState::kFailed) return job.failure();
  LK_RETURN_IF_ERROR(job.data().records().file->verify());
  return job.eval() != nullptr ? job.eval()->records().file->verify() : Status();
}

Status TrainRun::Impl::finish(Entry& entry) {
  LK_ASSIGN_OR_RETURN(const std::string said, entry.output->publish(*entry.job));
  if (!said.empty()) note(*entry.job, said);
  return Status();
}

// What fails for want of room is tried again; all else is final.
void TrainRun::Impl::finish_or_wait(Entry& entry) {
  entry.failure = check_end(entry);
  // A job that failed has the parameters of its last good step; they are kept, not published.
  if (entry.job->state() == TrainState::kFailed) (void)entry.output->checkpoint(*entry.job);
  bool no_room = false;
  if (entry.failure.ok()) {
    entry.failure = finish(entry);
    no_room = entry.failure.code() == StatusCode::kIoError;
  }
  const bool waited = std::exchange(entry.unfinished, no_room);
  if (entry.unfinished) {
    entry.save_after = Clock::now() + kSaveRetry;
    if (!waited) note(*entry.job, "waits, because it could not be saved: " + entry.failure.message());
  } else if (hooks_.on_end) {
    hooks_.on_end(*entry.job);
  }
}

// Whose directories these are from now on.
Status TrainRun::Impl::claim() {
  for (auto& entry : entries_) LK_RETURN_IF_ERROR(entry->output->claim().with_context("job " + entry->config.name));
  return Status();
}

Status TrainRun::Impl::train(const std::function<bool()>& stop) {
  for (auto& entry : entries_) {  // those that a checkpoint found at their end
    if (entry->job->state() == TrainState::kRunning) continue;
    if (entry->job->state() == TrainState::kFailed || !entry->output->published())
      ended_.push_back(entry->job);
    else if (hooks_.on_end)
      hooks_.on_end(*entry->job);
  }
  bool stopped = false;
  for (;;) {
    const bool more = trainer_->advance(stop);
    for (TrainJob* job : std::exchange(ended_, {})) finish_or_wait(entry(*job));
    for (auto& entry : entries_) {
      const int64_t every = entry->config.save.every, step = entry->job->progress().step;
      const bool due = every > 0 && step > 0 && step % every == 0 && step != entry->output->saved_step();
      if (due && entry->job->state() == TrainState::kRunning) checkpoint_or_pause(*entry);
    }
    if (!more && std::ranges::none_of(entries_, [](const auto& entry) { return waits(*entry); })) break;
    if ((stopped = stop && stop())) break;
    if (!more) std::this_thread::sleep_for(kWait);  // nothing to do but to wait for room
    retry_paused();
  }
  std::vector<std::string> failures;
  for (auto& entry : entries_) {
    if (stopped && entry->unfinished) {
      finish_or_wait(*entry);
    } else if (stopped && (entry->job->state() == TrainState::kRunning || waits(*entry))) {
      entry->failure = entry->output->checkpoint(*entry->job);
      if (entry->failure.ok())
        note(*entry->job, fmt::format("stopped; checkpoint of step {}", entry->output->saved_step()));
    }
    if (!entry->failure.ok()) failures.push_back(entry->config.name + ": " + entry->failure.message());
  }
  if (failures.empty()) return Status();
  return internal_error("{} of {} jobs failed\n  {}", failures.size(), entries_.size(), fmt::join(failures, "\n  "));
}

// --- TrainRun

TrainRun::TrainRun(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TrainRun::~TrainRun() = default;

Result<std::unique_ptr<TrainRun>> TrainRun::create(const RunConfig& config, const TrainBase& base,
                                                   TrainRunHooks hooks) {
  auto impl = std::make_unique<Impl>(config, base, std::move(hooks));
  LK_RETURN_IF_ERROR(impl->open());
  return std::unique_ptr<TrainRun>(new TrainRun(std::move(impl)));
}

const RunConfig& TrainRun::config() const { return impl_->config_; }
const TrainMemory& TrainRun::memory() const { return impl_->plan_.memory; }
size_t TrainRun::num_jobs() const { return impl_->entries_.size(); }
TrainJob& TrainRun::job(size_t index) { return *impl_->entries_[index]->job; }
const JobForecast& TrainRun::forecast(size_t index) const { return impl_->entries_[index]->forecast; }
const JobConfig& TrainRun::job_config(const TrainJob& job) const { return impl_->entry(job).config; }
Status TrainRun::claim() { return impl_->claim(); }
Status TrainRun::train(const std::function<bool()>& stop) { return impl_->train(stop); }

Result<std::string> preview_run(const RunConfig& config, const TrainBase& base, int64_t count, bool color) {
  DataSource source(base);
  std::string text;
  for (const JobConfig& job : config.jobs) {
    LK_ASSIGN_OR_RETURN(JobData data, source.open(job));
    text += fmt::format("job {}: {}\n", job.name, job.data.path);
    for (int64_t shown = 0; shown < count; ++shown) {
      Result<std::optional<Sample>> sample = data.train.next_in_epoch();
      if (!sample.ok()) return sample.status().with_context("job " + job.name);
      if (!*sample) break;
      int64_t trained = 0;
      for (const float weight : (*sample)->weights) trained += weight > 0;
      text +=
          fmt::format("--- record {}: {} tokens, {} trained{}\n{}", (*sample)->record, (*sample)->ids.size(), trained,
                      (*sample)->truncated ? ", truncated" : "", preview_sample(**sample, *base.tokenizer, color));
    }
  }
  return text;
}

}  // namespace lk
