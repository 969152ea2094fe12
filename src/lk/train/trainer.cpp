// SPDX-License-Identifier: Apache-2.0
#include "lk/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "lk/base/rng.h"

namespace lk {
namespace {

// Steps in a row without a finite loss and gradient after which a job is given up: one bad sample passes, a job that
// has left the finite numbers does not come back.
constexpr int64_t kMaxFailuresInARow = 3;

Status not_finite(double rate) {
  return data_loss(
      "{} steps in a row without a finite loss and gradient: the rate {:g} is too high, or weights or data hold "
      "extreme "
      "values",
      kMaxFailuresInARow, rate);
}

bool batch_complete(const TrainJobPlan& plan, int64_t samples, int64_t tokens) {
  return plan.batch_samples > 0 ? samples >= plan.batch_samples : tokens >= plan.batch_tokens;
}

}  // namespace

const char* to_string(TrainState state) {
  switch (state) {
    case TrainState::kRunning:
      return "running";
    case TrainState::kPaused:
      return "paused";
    case TrainState::kDone:
      return "done";
    case TrainState::kStopped:
      return "stopped early";
    case TrainState::kFailed:
      return "failed";
  }
  check_failed(__FILE__, __LINE__, "state", "not a TrainState");
}

void TrainJob::resume(const TrainProgress& progress) {
  progress_ = progress;
  data_.seek(progress.cursor);
  adapter_->set_num_steps(progress.step - progress.skipped_steps);
  if (progress_.eval_due) return;
  if (progress_.step >= plan_.total_steps) state_ = TrainState::kDone;
  if (lost_patience()) state_ = TrainState::kStopped;
  // Given up is given up: the same steps would fail again, and what they left is not a result.
  if (progress_.failures_in_a_row >= kMaxFailuresInARow) {
    state_ = TrainState::kFailed;
    failure_ = not_finite(plan_.rate(std::max<int64_t>(progress_.step - 1, 0)));
  }
}

void TrainJob::pause(Status why) {
  if (state_ != TrainState::kRunning) return;
  state_ = TrainState::kPaused;
  failure_ = std::move(why);
}

void TrainJob::unpause() {
  if (state_ == TrainState::kPaused) state_ = TrainState::kRunning;
}

void TrainJob::fail(Status why) {
  state_ = TrainState::kFailed;
  failure_ = std::move(why);
  next_.reset();
}

void Trainer::end(TrainJob& job, TrainState state, Status why) {
  job.state_ = state;
  job.failure_ = std::move(why);
  job.next_.reset();
  observer_.on_end(job);
}

bool Trainer::fetch(TrainJob& job) {
  if (job.next_) return true;
  Result<Sample> sample = job.data_.next();
  if (sample.ok())
    if (const Status status = pass_.accepts(sample->ids); !status.ok())
      sample = status.with_context(job.data_.records().file->where(sample->record));
  if (!sample.ok()) {
    end(job, TrainState::kFailed, sample.status());
    return false;
  }
  job.next_ = std::move(sample).value();
  return true;
}

// Samples of the jobs that are furthest behind their share, until nothing more fits. Those of one job stay in order and
// stand together.
std::vector<Trainer::Entry> Trainer::pack() {
  std::vector<Entry> entries;
  int64_t rows = 0;
  std::vector<TrainJob*> open;
  for (auto& job : jobs_)
    if (job->state_ == TrainState::kRunning && !job->progress_.eval_due) open.push_back(job.get());
  while (!open.empty()) {
    TrainJob& job = **std::ranges::min_element(open, {}, [](const TrainJob* job) { return job->served_; });
    const bool complete = batch_complete(job.plan_, job.step_samples_, job.step_tokens_);
    if (complete || !fetch(job) || rows + static_cast<int64_t>(job.next_->ids.size()) > pass_.max_rows()) {
      std::erase(open, &job);
      continue;
    }
    const auto tokens = static_cast<int64_t>(job.next_->ids.size());
    // What dropout draws depends on the job's step and on which of its samples this is.
    const uint64_t key = mix64(static_cast<uint64_t>(job.progress_.step) * 0x9e3779b97f4a7c15ull +
                               static_cast<uint64_t>(job.step_samples_));
    rows += tokens;
    ++job.step_samples_;
    job.step_tokens_ += tokens;
    job.served_ += static_cast<double>(tokens) / job.plan_.share;
    entries.push_back({&job, std::move(*job.next_), key});
    job.next_.reset();
  }
  std::ranges::stable_sort(entries, {}, [&](const Entry& entry) {
    return std::ranges::find(jobs_, entry.job, &std::unique_ptr<TrainJob>::get) - jobs_.begin();
  });
  return entries;
}

bool Trainer::advance(const std::function<bool()>& stop) {
  for (auto& job : jobs_)
    if (job->state_ == TrainState::kRunning && job->progress_.eval_due) settle(*job, stop);
  const std::vector<Entry> entries = pack();
  if (entries.empty())
    return std::ranges::any_of(jobs_, [](const auto& job) { return job->state_ == TrainState::kRunning; });
  TokenBlock block;
  for (const Entry& entry : entries)
    block.add(entry.sample.ids, entry.sample.weights, entry.key, &entry.job->adapter());
  account(entries, block, pass_.forward_backward(block));
  for (auto& job : jobs_)
    if (job->state_ == TrainState::kRunning && batch_complete(job->plan_, job->step_samples_, job->step_tokens_)) {
      finish_step(*job);
      if (job->state_ == TrainState::kRunning) settle(*job, stop);
    }
  return true;
}

void Trainer::account(const std::vector<Entry>& entries, const TokenBlock& block, const RowLosses& rows) {
  size_t row = 0;
  for (const Entry& entry : entries) {
    for (size_t t = 0; t < entry.sample.ids.size(); ++t, ++row) {
      const auto weight = static_cast<double>(block.weights[row]);
      if (weight == 0) continue;
      entry.job->step_loss_ += weight * static_cast<double>(rows.losses[row]);
      entry.job->step_weight_ += weight;
      ++entry.job->step_loss_tokens_;
    }
  }
}

void Trainer::finish_step(TrainJob& job) {
  StepEvent event{.loss = job.step_loss_ / job.step_weight_,
                  .rate = job.plan_.rate(job.progress_.step),
                  .tokens = job.step_tokens_,
                  .loss_tokens = job.step_loss_tokens_};
  StepReport report;
  if (std::isfinite(event.loss)) {
    AdamwStep dials = job.plan_.dials;
    dials.rate = event.rate;
    report = job.adapter_->step(dials, job.step_weight_);
  } else {
    job.adapter_->zero_gradient();
  }
  event.skipped = !report.finite;
  event.gradient_norm = report.gradient_norm;
  TrainProgress& progress = job.progress_;
  event.step = ++progress.step;
  progress.cursor = job.data_.cursor();
  progress.tokens += job.step_tokens_;
  progress.loss_tokens += job.step_loss_tokens_;
  progress.skipped_steps += event.skipped ? 1 : 0;
  job.step_samples_ = job.step_tokens_ = job.step_loss_tokens_ = 0;
  job.step_loss_ = job.step_weight_ = 0;
  progress.failures_in_a_row = event.skipped ? progress.failures_in_a_row + 1 : 0;
  observer_.on_step(job, event);
  if (progress.failures_in_a_row >= kMaxFailuresInARow) return end(job, TrainState::kFailed, not_finite(event.rate));
  const bool last = progress.step >= job.plan_.total_steps;
  progress.eval_due =
      !job.eval_.empty() && (last || (job.plan_.eval_every > 0 && progress.step % job.plan_.eval_every == 0));
}

void Trainer::settle(TrainJob& job, const std::function<bool()>& stop) {
  if (job.progress_.eval_due) finish_eval(job, stop);
  if (job.state_ == TrainState::kRunning && !job.progress_.eval_due && job.progress_.step >= job.plan_.total_steps)
    end(job, TrainState::kDone);
}

void Trainer::finish_eval(TrainJob& job, const std::function<bool()>& stop) {
  std::optional<EvalEvent> evaluated = evaluate(job, stop);
  if (!evaluated) return;
  EvalEvent& event = *evaluated;
  TrainProgress& progress = job.progress_;
  progress.eval_due = false;
  const bool first = progress.best_step < 0;
  event.best = std::isfinite(event.loss) && (first || event.loss < progress.best_loss);
  if (event.best) {
    progress.best_loss = event.loss;
    progress.best_step = progress.step;
  }
  if (std::isfinite(event.loss) && (first || event.loss < progress.gain_loss - job.plan_.min_delta)) {
    progress.gain_loss = event.loss;
    progress.evals_without_gain = 0;
  } else {
    ++progress.evals_without_gain;
  }
  observer_.on_eval(job, event);
  if (job.lost_patience()) end(job, TrainState::kStopped);
}

struct Trainer::EvalSums {
  double loss = 0, weight = 0;
  int64_t greedy = 0, samples = 0, loss_tokens = 0;

  void add(const EvalSums& other) {
    loss += other.loss;
    weight += other.weight;
    greedy += other.greedy;
    samples += other.samples;
    loss_tokens += other.loss_tokens;
  }
  EvalFigures figures() const {
    return {.loss = loss / weight,
            .accuracy = static_cast<double>(greedy) / static_cast<double>(std::max<int64_t>(loss_tokens, 1)),
            .samples = samples,
            .loss_tokens = loss_tokens};
  }
};

std::optional<EvalEvent> Trainer::evaluate(TrainJob& job, const std::function<bool()>& stop) {
  EvalEvent event;
  EvalSums all;
  for (EvalSet& set : job.eval_) {
    EvalSums sums;
    if (!evaluate_set(job, set.data, stop, sums)) return std::nullopt;
    all.add(sums);
    event.sets.push_back(sums.figures());
  }
  static_cast<EvalFigures&>(event) = all.figures();
  event.step = job.progress_.step;
  return event;
}

bool Trainer::evaluate_set(TrainJob& job, SampleReader& data, const std::function<bool()>& stop, EvalSums& sums) {
  const auto run = [&](const TokenBlock& block) {
    const RowLosses rows = pass_.evaluate(block);
    for (size_t row = 0; row < rows.losses.size(); ++row) {
      const auto weight = static_cast<double>(block.weights[row]);
      if (weight == 0) continue;
      sums.loss += weight * static_cast<double>(rows.losses[row]);
      sums.weight += weight;
      sums.greedy += rows.greedy[row];
      ++sums.loss_tokens;
    }
  };
  TokenBlock block;
  data.seek({});
  for (;;) {
    Result<std::optional<Sample>> sample = data.next_in_epoch();
    if (!sample.ok()) {
      end(job, TrainState::kFailed, sample.status().with_context("evaluation"));
      return false;
    }
    if (!*sample) break;
    const auto tokens = static_cast<int64_t>((*sample)->ids.size());
    if (const Status status = pass_.accepts((*sample)->ids); !status.ok()) {
      end(job, TrainState::kFailed, status.with_context(data.records().file->where((*sample)->record)));
      return false;
    }
    if (block.num_rows() + tokens > pass_.max_rows()) {
      run(block);
      block = {};
      if (stop && stop()) return false;
    }
    block.add((*sample)->ids, (*sample)->weights, 0, &job.adapter());
    ++sums.samples;
  }
  if (block.num_rows() > 0) run(block);
  return true;
}

}  // namespace lk
