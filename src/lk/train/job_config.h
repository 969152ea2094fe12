// SPDX-License-Identifier: Apache-2.0
// What shall be trained: the jobs of one run over one base, as JOBS.yaml or flags describe them. Pure data; everything
// about it that can be checked without the base and the data is checked here, before anything starts.
//
//   base: models/llama
//   defaults:
//     adapter: {rank: 16, alpha: 32}
//     train: {epochs: 1, batch_tokens: 2048}
//   jobs:
//     - name: sql
//       data: {path: sql.jsonl, eval_split: 0.05}
//       sweep: {train.lr: [1.0e-4, 3.0e-4]}       # two jobs: sql-lr1.0e-4 and sql-lr3.0e-4
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/json/object.hpp>

#include "lk/base/status.h"
#include "lk/dataset/record.h"
#include "lk/dataset/render.h"
#include "lk/lora_tools/initial.h"
#include "lk/train/train_pass.h"

namespace lk {

enum class AdapterKind { kLora, kDora, kMultiLora };
enum class LrSchedule { kConstant, kLinear, kCosine, kInverseSqrt };
enum class TrainDtype { kBf16, kF32 };

struct AdapterSpec {
  AdapterKind kind = AdapterKind::kLora;
  int64_t num_modules = 2;  // of MultiLoRA
  int64_t rank = 16;
  double alpha = 32;
  bool use_rslora = false, lora_bias = false;
  std::optional<double> dropout;  // absent: that of init_from's configuration, or 0
  // Names or endings of modules, or a single regular expression of whole paths.
  std::vector<std::string> target_modules{"all-linear"};
  std::vector<std::string> exclude_modules;
  std::vector<int64_t> layers_to_transform;                   // empty: all
  std::vector<std::pair<std::string, int64_t>> rank_pattern;  // as PEFT's: the first that matches counts
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::vector<std::string> modules_to_save;
  std::vector<int64_t> trainable_tokens;
  std::vector<std::string> freeze;  // factors that stay as they start: A (LoRA-FA), B
  AdapterInit init = AdapterInit::kDefault;
  std::string init_from;  // a PEFT directory to train on; its shape replaces the fields above
};

struct DataSpec {
  std::string path;
  std::optional<RecordFormat> format;  // absent: the first record's
  RenderOptions render;
  bool shuffle = true;
  bool skip_bad = false;
  std::vector<std::string> eval_path;  // files, judged one by one and together; at most one of the two
  double eval_split = 0;               // share of the records
};

struct TrainSpec {
  int64_t batch_samples = 0, batch_tokens = 0;  // per optimiser step; exactly one is given
  int64_t steps = 0;
  double epochs = 0;  // exactly one of the two is given
  double lr = 2e-4;
  LrSchedule schedule = LrSchedule::kConstant;
  double min_ratio = 0;  // lr never falls below this share of itself
  int64_t warmup_steps = 0;
  double warmup_ratio = 0;  // at most one of the two
  double weight_decay = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip = 1;            // of the norm of all gradients of the job; 0 = off
  double loraplus_ratio = 1;  // B's learning rate over A's
  uint64_t seed = 0;
  double weight = 1;  // the job's share of a block of tokens, against other jobs'
};

struct EvalSpec {
  int64_t every = 0;  // optimiser steps; 0 = at the end only
  bool exact_match = false;
  int64_t patience = 0;   // evaluations without improvement until the job stops; 0 = never
  double min_delta = 0;   // what counts as improvement
  bool keep_best = true;  // with `every`: what is written at the end is the adapter of the best evaluation
};

struct SaveSpec {
  std::string dir;                      // absent: the run's output directory / the job's name
  int64_t every = 0;                    // optimiser steps; 0 = at the end only
  int64_t keep = 2;                     // checkpoints
  TrainDtype dtype = TrainDtype::kF32;  // of the adapter's file; PEFT itself writes f32
};

struct JobConfig {
  std::string name;
  AdapterSpec adapter;
  DataSpec data;
  TrainSpec train;
  EvalSpec eval;
  SaveSpec save;
};

struct RunConfig {
  std::string base;
  TrainDtype dtype = TrainDtype::kBf16;
  int64_t block_tokens = 2048;                 // at most so many go through the base at once
  std::optional<Checkpointing> checkpointing;  // of activations; absent: the least that fits the memory
  int64_t memory_bytes = 0;                    // 0 = what the machine allows
  int64_t threads = 0;                         // 0 = all
  std::string output = "adapters";
  std::string metrics;      // JSONL file; empty: output/metrics.jsonl
  std::string tensorboard;  // directory; empty: none
  std::vector<JobConfig> jobs;
};

// Paths are relative to the working directory. kInvalidArgument names file:line and the key; an unknown key also the
// nearest known one.
Result<RunConfig> load_run_config(const std::string& path);
Result<RunConfig> parse_run_config(const std::string& yaml, const std::string& where);

// A run of one job, without a file. `set`: further keys as KEY=VALUE, dotted but for those of the run:
// "train.lr=1e-4", "block_tokens=512"; of equal keys the last counts.
struct JobFlags {
  std::string base, data, output, name;
  std::vector<std::string> set;
};
Result<RunConfig> parse_job_flags(const JobFlags& flags);

// The whole of it in the layout of the YAML, defaults filled in: for checkpoints, which must be of the same job.
boost::json::object job_config_json(const JobConfig& job);

// The learning rate of optimiser step `step`, counted from 0, of `total_steps`: warm-up from 0, then the schedule. As
// transformers': get_constant_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup (power 1),
// get_cosine_with_min_lr_schedule_with_warmup, get_inverse_sqrt_schedule.
double learning_rate_at(const TrainSpec& spec, int64_t step, int64_t total_steps);

}  // namespace lk
