// SPDX-License-Identifier: Apache-2.0
#include "lk/train/run.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/base/memory_limits.h"
#include "lk/dataset/preview.h"
#include "lk/train/job_output.h"
#include "lk/train/job_sections.h"
#include "lk/train/job_start.h"

namespace lk {
namespace {
namespace json = boost::json;
using Clock = std::chrono::steady_clock;

// A job whose checkpoint could not be written tries again after so long.
constexpr std::chrono::seconds kSaveRetry{15};
constexpr std::chrono::milliseconds kWait{100};

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
  if (waits_for_data(job.adapter)) adapter["block_tokens"] = run.block_tokens;
  // A limit that no sample reaches is none, whatever the block is: the parser's default.
  const auto cut = [](const DataCounts& counts) { return counts.truncated + counts.dropped + counts.bad > 0; };
  if (!cut(forecast.train) && std::ranges::none_of(forecast.eval, cut)) object.at("data").as_object()["max_length"] = 0;
  object["dtype"] = run.dtype == TrainDtype::kF32 ? "f32" : "bf16";
  return json_text(object);
}

double share_of(const ExactMatch& found) {
  return found.answers > 0 ? static_cast<double>(found.matches) / static_cast<double>(found.answers) : 0.0;
}

}  // namespace

class TrainRun::Impl : public TrainObserver {
 public:
  Impl(const RunConfig& config, const TrainBase& base, TrainRunHooks hooks)
      : config_(config), base_(base), hooks_(std::move(hooks)) {}

  Status open(const AskStop& stop);
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
  RunPlan plan_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unique_ptr<TrainPass> pass_;
  std::unique_ptr<Trainer> trainer_;

 private:
  struct Opened {
    std::unique_ptr<Entry> entry;
    JobData data;
    JobStart start;
  };
  Status plan(const std::vector<Opened>& opened, const MemoryNow& now);
  Status check_block(const std::vector<Opened>& opened) const;
  Status make_job(Opened& item, const std::string& base_digest, const AskStop& stop,
                  std::vector<std::unique_ptr<TrainJob>>& jobs);
  void note(TrainJob& job, const std::string& message) {
    if (hooks_.on_note) hooks_.on_note(job, message);
  }
  void add_exact_match(TrainJob& job, const std::shared_ptr<const Adapter>& adapter, EvalEvent& event);
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

Status TrainRun::Impl::open(const AskStop& stop) {
  std::vector<Opened> opened;
  DataSource source(base_, stop);
  for (const JobConfig& config : config_.jobs) {
    const auto in_job = [&](const Status& status) { return status.with_context("job " + config.name); };
    auto entry = std::make_unique<Entry>();
    entry->config = config;
    Result<JobData> data = source.open(config);
    if (!data.ok()) return in_job(data.status());
    Result<JobForecast> forecast = source.survey(*data, config.eval, entry->config.train);
    if (!forecast.ok()) return in_job(forecast.status());
    entry->forecast = std::move(*forecast);
    opened.push_back({std::move(entry), std::move(*data), {}});
  }
  // Before the adapters are there, which are counted job by job.
  const MemoryNow now{.available = read_memory_limits().available,
                      .held = std::max<int64_t>(0, read_resident_bytes() - base_bytes(*base_.weights)),
                      .reserved = base_.reserved_bytes};
  for (Opened& item : opened) {
    Result<JobStart> start = make_job_start(item.entry->config, base_, config_.base);
    if (!start.ok()) return start.status().with_context("job " + item.entry->config.name);
    item.start = std::move(*start);
    LK_RETURN_IF_ERROR(check_stop(stop));
  }
  LK_RETURN_IF_ERROR(plan(opened, now));
  LK_RETURN_IF_ERROR(check_block(opened));
  LK_ASSIGN_OR_RETURN(pass_, TrainPass::create(base_.weights, *base_.backend, plan_.pass));
  LK_ASSIGN_OR_RETURN(const std::string digest, base_files_digest(base_.directory, stop));
  std::vector<std::unique_ptr<TrainJob>> jobs;
  for (Opened& item : opened) {
    const std::string name = item.entry->config.name;
    LK_RETURN_IF_ERROR(make_job(item, digest, stop, jobs).with_context("job " + name));
  }
  trainer_ = std::make_unique<Trainer>(*pass_, std::move(jobs), *this);
  for (auto& entry : entries_) {
    LK_RETURN_IF_ERROR(check_stop(stop));
    const Result<std::vector<std::string>> notes = entry->output->resume(*entry->job);
    if (!notes.ok()) return notes.status().with_context("job " + entry->config.name);
    for (const std::string& text : *notes) note(*entry->job, text);
  }
  return Status();
}

Status TrainRun::Impl::plan(const std::vector<Opened>& opened, const MemoryNow& now) {
  std::vector<PlannedJob> jobs;
  for (const Opened& item : opened) {
    const AdapterSpec& spec = item.entry->config.adapter;
    LK_ASSIGN_OR_RETURN(
        const TrainableAdapter::Sizes sizes,
        TrainableAdapter::sizes(*item.start.adapter, *base_.weights, *base_.backend, item.start.options));
    item.entry->forecast.parameters = sizes.parameters;
    item.entry->forecast.state_bytes = sizes.bytes;
    PassNeeds needs = sizes.needs;
    if (waits_for_data(spec))
      for (int64_t& rank : needs.ranks) rank *= 2;
    // What settles a start is gone before its states are saved.
    jobs.push_back({.state_bytes = sizes.bytes,
                    .making_bytes = std::max(sizes.copy_bytes, settling_bytes(spec, *item.start.adapter)),
                    .longest_sample = item.entry->forecast.longest_sample(),
                    .needs = needs});
  }
  LK_ASSIGN_OR_RETURN(plan_, plan_run(config_, base_.weights, *base_.backend, jobs, now));
  return Status();
}

Status TrainRun::Impl::check_block(const std::vector<Opened>& opened) const {
  for (const Opened& item : opened) {
    const int64_t longest = item.entry->forecast.longest_sample();
    if (longest > config_.block_tokens)
      return invalid_argument(
          "job {}: its longest sample has {} tokens and a block {}; raise block_tokens, or set data.max_length",
          item.entry->config.name, longest, config_.block_tokens);
  }
  return Status();
}

Status TrainRun::Impl::make_job(Opened& item, const std::string& digest, const AskStop& stop,
                                std::vector<std::unique_ptr<TrainJob>>& jobs) {
  Entry& entry = *item.entry;
  const JobConfig& config = entry.config;
  LK_RETURN_IF_ERROR(settle_start(item.start, config, base_, config_.base, *pass_, item.data.train, stop));
  LK_ASSIGN_OR_RETURN(
      auto adapter, TrainableAdapter::create(*item.start.adapter, *base_.weights, *base_.backend, item.start.options));
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
                    .dials = dials_of(train),
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
  EvalEvent told = event;
  if (own.config.eval.exact_match && hooks_.exact_match) add_exact_match(job, snapshot(), told);
  if (hooks_.on_eval) hooks_.on_eval(job, told);
}

void TrainRun::Impl::add_exact_match(TrainJob& job, const std::shared_ptr<const Adapter>& adapter, EvalEvent& event) {
  ExactMatch all;
  for (size_t index = 0; index < job.eval().size(); ++index) {
    const Result<ExactMatch> found = hooks_.exact_match(job.eval()[index].data, adapter);
    if (!found.ok()) return note(job, "exact match: " + found.status().message());
    event.sets[index].exact_match = share_of(*found);
    all.matches += found->matches;
    all.answers += found->answers;
  }
  event.exact_match = share_of(all);
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
  for (const EvalSet& set : job.eval()) LK_RETURN_IF_ERROR(set.data.records().file->verify());
  return Status();
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

Result<std::unique_ptr<TrainRun>> TrainRun::create(const RunConfig& config, const TrainBase& base, TrainRunHooks hooks,
                                                   const AskStop& stop) {
  auto impl = std::make_unique<Impl>(config, base, std::move(hooks));
  LK_RETURN_IF_ERROR(impl->open(stop));
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

Result<std::string> preview_run(const RunConfig& config, const TrainBase& base, int64_t count, bool color,
                                const AskStop& stop) {
  DataSource source(base, stop);
  std::string text;
  for (const JobConfig& job : config.jobs) {
    LK_ASSIGN_OR_RETURN(JobData data, source.open(job));
    text += fmt::format("job {}: {}\n", job.name, job.data.path);
    for (int64_t shown = 0; shown < count; ++shown) {
      LK_RETURN_IF_ERROR(check_stop(stop));
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
