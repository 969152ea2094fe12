// SPDX-License-Identifier: Apache-2.0
// What a training run tells about itself: a JSON line per optimiser step and per evaluation, TensorBoard event files (a
// directory per job), and the loss curves. After a crash the log goes on where the checkpoint does: entries of steps
// that will be taken again are dropped.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lk/base/status.h"
#include "lk/train/loss_curve.h"
#include "lk/train/tensorboard_events.h"

namespace lk {

struct StepMetrics {
  std::string job;
  int64_t step = 0;  // optimiser steps taken, this one included
  double epoch = 0, loss = 0, learning_rate = 0, grad_norm = 0;
  int64_t tokens = 0, loss_tokens = 0;        // of this step
  double tokens_per_second = 0, seconds = 0;  // seconds: since the job began
};

struct EvalMetrics {
  std::string job;
  int64_t step = 0;
  double loss = 0, perplexity = 0;
  double accuracy = 0;  // share of next tokens that were the most likely
  int64_t loss_tokens = 0;
  std::optional<double> exact_match = {};  // share
  double seconds = 0;
  std::string file = {};  // empty: all evaluation files of the job together
};

// Thread safety: none; one thread writes.
class MetricsLog {
 public:
  struct Options {
    std::string jsonl;                     // path; empty: none
    std::string tensorboard;               // directory; empty: none
    std::map<std::string, int64_t> steps;  // of every job of the run: how many it has taken already
  };
  static Result<std::unique_ptr<MetricsLog>> open(const Options& options);

  Status add(const StepMetrics& metrics);
  Status add(const EvalMetrics& metrics);

  // By job, those of before a resumption included (if there is a JSONL file).
  std::vector<LossCurve> curves() const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  MetricsLog() = default;
  Status take_over(const Options& options);
  Status write_line(const std::string& line);
  Status write_scalars(const std::string& job, int64_t step,
                       const std::vector<std::pair<std::string, double>>& scalars);

  std::string path_, tensorboard_;
  bool torn_ = false;  // the latest line may lack its end
  std::unique_ptr<std::FILE, Close> file_;
  std::map<std::string, int64_t> steps_;
  std::map<std::string, LossCurve> curves_;
  std::map<std::string, TensorboardEvents> events_;
};

}  // namespace lk
