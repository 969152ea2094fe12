// SPDX-License-Identifier: Apache-2.0
// Trainer: several jobs train together, each its own adapter with its own data, ranks, rates and steps. Every round
// packs samples of the jobs into one block of rows and runs one pass over the shared base (TrainPass); a job whose
// batch is complete then takes its optimiser step. Which samples a job has seen at a step, and in which order, depends
// on the job alone, so what it becomes does, too.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/dataset/dataset.h"
#include "lk/train/train_pass.h"

namespace lk {

struct TrainJobPlan {
  std::string name;
  double share = 1;  // of the rows computed, relative to other jobs
  // One of them is > 0: samples or tokens of an optimiser step. A step of tokens ends with the sample that reaches
  // them.
  int64_t batch_samples = 0, batch_tokens = 0;
  int64_t total_steps = 0;
  std::function<double(int64_t step)> rate;  // of AdamW, by the step's number from 0
  AdamwStep dials;                           // but for the rate
  int64_t eval_every = 0;                    // steps; 0: only at the end
  int64_t patience = 0;                      // evaluations without a gain of min_delta before the job stops; 0 = never
  double min_delta = 0;
};

// How a job stands. All of it is in a checkpoint.
struct TrainProgress {
  int64_t step = 0;   // optimiser steps done
  DataCursor cursor;  // of the first sample of the next step
  int64_t tokens = 0, loss_tokens = 0;
  int64_t skipped_steps = 0;      // whose loss or gradient was not finite
  int64_t failures_in_a_row = 0;  // of these the latest
  int64_t best_step = -1;         // of the evaluation with the smallest loss; -1: none yet
  double best_loss = 0;
  double gain_loss = 0;  // of the latest evaluation that gained min_delta, counted from the first
  int64_t evals_without_gain = 0;
  bool eval_due = false;  // of the latest step: it was interrupted
};

enum class TrainState : uint8_t { kRunning, kPaused, kDone, kStopped, kFailed };
const char* to_string(TrainState state);

struct StepEvent {
  int64_t step = 0;  // from 1: how many are done
  double loss = 0;   // mean over the weighted tokens of the step
  double rate = 0, gradient_norm = 0;
  int64_t tokens = 0, loss_tokens = 0;
  bool skipped = false;  // not finite: nothing was changed
};
struct EvalFigures {
  double loss = 0;      // mean over weighted tokens; its exponential is the perplexity
  double accuracy = 0;  // share of tokens with loss that were the most likely
  int64_t samples = 0, loss_tokens = 0;
  std::optional<double> exact_match = {};  // share of answers; not the trainer's to find out
};
// Over all sets together: what the best evaluation and patience go by.
struct EvalEvent : EvalFigures {
  int64_t step = 0;
  bool best = false;
  std::vector<EvalFigures> sets;  // one by one, as in TrainJob::eval()
};

// Records that a job is judged by.
struct EvalSet {
  std::string name;  // of the file
  SampleReader data;
};

class TrainJob {
 public:
  TrainJob(TrainJobPlan plan, std::unique_ptr<TrainableAdapter> adapter, SampleReader data, std::vector<EvalSet> eval)
      : plan_(std::move(plan)), adapter_(std::move(adapter)), data_(std::move(data)), eval_(std::move(eval)) {}

  const TrainJobPlan& plan() const { return plan_; }
  TrainableAdapter& adapter() { return *adapter_; }
  const TrainableAdapter& adapter() const { return *adapter_; }
  TrainState state() const { return state_; }
  const Status& failure() const { return failure_; }  // of kFailed, and of kPaused
  const TrainProgress& progress() const { return progress_; }
  const SampleReader& data() const { return data_; }
  const std::vector<EvalSet>& eval() const { return eval_; }

  // Goes on from a checkpoint: the adapter's arrays are the caller's to restore.
  void resume(const TrainProgress& progress);
  void pause(Status why);  // takes part no more, and loses nothing; only between rounds
  void unpause();
  void fail(Status why);  // only between rounds
  bool lost_patience() const {
    return plan_.patience > 0 && progress_.evals_without_gain >= plan_.patience && progress_.step < plan_.total_steps;
  }

 private:
  friend class Trainer;
  TrainJobPlan plan_;
  std::unique_ptr<TrainableAdapter> adapter_;
  SampleReader data_;
  std::vector<EvalSet> eval_;
  TrainState state_ = TrainState::kRunning;
  Status failure_;
  TrainProgress progress_;

  // The step in work.
  std::optional<Sample> next_;  // read, not yet in a block
  int64_t step_samples_ = 0, step_tokens_ = 0, step_loss_tokens_ = 0;
  double step_loss_ = 0, step_weight_ = 0;
  double served_ = 0;  // rows computed / share
};

class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_step(TrainJob& job, const StepEvent& event) = 0;
  virtual void on_eval(TrainJob& job, const EvalEvent& event) = 0;
  virtual void on_end(TrainJob& job) = 0;  // state() says how
};

class Trainer {
 public:
  Trainer(TrainPass& pass, std::vector<std::unique_ptr<TrainJob>> jobs, TrainObserver& observer)
      : pass_(pass), jobs_(std::move(jobs)), observer_(observer) {}

  std::vector<std::unique_ptr<TrainJob>>& jobs() { return jobs_; }
  // One round: a block, and the optimiser steps and evaluations that it completes. False when no job runs any more.
  // Evaluations ask `stop` after each block; one that is broken off is done anew in the next round, or after a resume.
  bool advance(const std::function<bool()>& stop = {});

 private:
  struct Entry {
    TrainJob* job;
    Sample sample;
    uint64_t key;
  };
  std::vector<Entry> pack();
  bool fetch(TrainJob& job);  // next_ is there; otherwise the job has failed
  void account(const std::vector<Entry>& entries, const TokenBlock& block, const RowLosses& rows);
  void finish_step(TrainJob& job);
  // What a step leads to: an evaluation, the job's end.
  void settle(TrainJob& job, const std::function<bool()>& stop);
  void finish_eval(TrainJob& job, const std::function<bool()>& stop);
  // Nothing: it was broken off, or the job has failed.
  std::optional<EvalEvent> evaluate(TrainJob& job, const std::function<bool()>& stop);
  struct EvalSums;
  bool evaluate_set(TrainJob& job, SampleReader& data, const std::function<bool()>& stop, EvalSums& sums);
  void end(TrainJob& job, TrainState state, Status why = {});

  TrainPass& pass_;
  std::vector<std::unique_ptr<TrainJob>> jobs_;
  TrainObserver& observer_;
};

}  // namespace lk
