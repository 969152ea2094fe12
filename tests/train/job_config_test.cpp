// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/train/foreign_names.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

RunConfig parse(const std::string& yaml) {
  auto run = parse_run_config(yaml, "JOBS.yaml");
  LK_CHECK(run.ok(), "{}", run.status().message());
  return *run;
}
std::string error(const std::string& yaml) {
  const auto run = parse_run_config(yaml, "JOBS.yaml");
  return run.ok() ? "parsed" : run.status().message();
}
// One job with these lines, indented by four spaces, from line 4 on.
std::string job(const std::string& lines) { return "base: m\njobs:\n  - name: a\n" + lines; }
std::string job_with(const std::string& section, const std::string& fields) {
  return job("    data: {path: d.jsonl}\n    " + section + ": {" + fields + "}\n");
}

TEST(JobConfig, AllFieldsAreRead) {
  const RunConfig run = parse(R"(
base: models/x
dtype: f32
block_tokens: 4096
checkpointing: selective
memory: 8GiB
threads: 3
output: out
metrics: m.jsonl
tensorboard: tb
jobs:
  - name: a
    adapter:
      kind: multilora
      num_modules: 3
      rank: 8
      alpha: 12.5
      use_rslora: true
      dropout: 0.1
      target_modules: [q_proj, v_proj]
      exclude_modules: [lm_head]
      layers_to_transform: [0, 2]
      rank_pattern: {q_proj: 4}
      alpha_pattern: {q_proj: 3}
      modules_to_save: [lm_head]
      trainable_tokens: [5, 6]
    data: {path: d.jsonl, format: alpaca, max_length: 100, long_samples: drop, train_on_prompt: true, skip_bad: true,
           shuffle: false, eval_split: 0.1}
    train: {batch_tokens: 512, steps: 10, lr: 1e-3, schedule: cosine, min_ratio: 0.1, warmup_ratio: 0.2,
            weight_decay: 0.01, betas: [0.8, 0.95], eps: 1e-6, clip: 0, loraplus_ratio: 16, seed: 7, weight: 2}
    eval: {every: 5, exact_match: true, patience: 3, min_delta: 0.001}
    save: {dir: s, every: 4, keep: 3, dtype: bf16}
)");
  EXPECT_EQ(run.base, "models/x");
  EXPECT_EQ(run.dtype, TrainDtype::kF32);
  EXPECT_EQ(run.block_tokens, 4096);
  EXPECT_EQ(run.checkpointing, Checkpointing::kSelective);
  EXPECT_EQ(run.memory_bytes, int64_t{8} << 30);
  EXPECT_EQ(run.threads, 3);
  EXPECT_EQ(run.metrics + run.tensorboard + run.output, "m.jsonltbout");
  ASSERT_EQ(run.jobs.size(), 1u);
  EXPECT_EQ(
      json_text(job_config_json(run.jobs[0])),
      R"({"name":"a","adapter":{"kind":"multilora","num_modules":3,"rank":8,"alpha":1.25E1,"use_rslora":true,)"
      R"("lora_bias":false,"dropout":1E-1,"target_modules":["q_proj","v_proj"],"exclude_modules":["lm_head"],)"
      R"("layers_to_transform":[0,2],)"
      R"("rank_pattern":{"q_proj":4},"alpha_pattern":{"q_proj":3E0},"modules_to_save":["lm_head"],)"
      R"("trainable_tokens":[5,6],"freeze":[],"init":"default","init_from":""},)"
      R"("data":{"path":"d.jsonl","format":"alpaca","max_length":100,"long_samples":"drop","train_on_prompt":true,)"
      R"("mask_history":false,"shuffle":false,"skip_bad":true,"eval_path":[],"eval_split":1E-1},)"
      R"("train":{"batch_samples":0,"batch_tokens":512,"steps":10,"epochs":0E0,"lr":1E-3,"schedule":"cosine",)"
      R"("min_ratio":1E-1,"warmup_steps":0,"warmup_ratio":2E-1,"weight_decay":1E-2,"betas":[8E-1,9.5E-1],"eps":1E-6,)"
      R"("clip":0E0,"loraplus_ratio":1.6E1,"seed":7,"weight":2E0},)"
      R"("eval":{"every":5,"exact_match":true,"patience":3,"min_delta":1E-3,"keep_best":true},)"
      R"("save":{"dir":"s","every":4,"keep":3,"dtype":"bf16"}})");
}

TEST(JobConfig, DefaultsLieBelowEveryJob) {
  const RunConfig run = parse(R"(
base: m
defaults:
  adapter: {rank: 4, target_modules: [q_proj], rank_pattern: {a: 1}}
  data: {path: d.jsonl, eval_split: 0.1}
  train: {epochs: 3, batch_tokens: 100, warmup_steps: 5}
jobs:
  - name: a
  - name: b
    adapter: {rank: 8, rank_pattern: {b: 2}}
    data: {eval_path: e.jsonl}
    train: {steps: 10, batch_samples: 2, warmup_steps: null}
)");
  ASSERT_EQ(run.jobs.size(), 2u);
  const JobConfig &a = run.jobs[0], &b = run.jobs[1];
  EXPECT_EQ(a.adapter.rank, 4);
  EXPECT_EQ(a.train.epochs, 3);
  EXPECT_EQ(a.save.dir, "adapters/a");
  EXPECT_EQ(b.adapter.rank, 8);
  EXPECT_THAT(b.adapter.target_modules, ElementsAre("q_proj"));
  EXPECT_THAT(b.adapter.rank_pattern, ElementsAre(Pair("b", 2)));  // replaced as a whole
  // Of keys that exclude each other the job's own counts.
  EXPECT_THAT(b.data.eval_path, ::testing::ElementsAre("e.jsonl"));
  EXPECT_EQ(b.data.eval_split, 0);
  EXPECT_EQ(b.train.epochs, 0);
  EXPECT_EQ(b.train.steps, 10);
  EXPECT_EQ(b.train.batch_tokens, 0);
  EXPECT_EQ(b.train.warmup_steps, 0);  // null: as if nobody had said anything
  EXPECT_EQ(b.data.render.max_length, 2048);
  // What the default says of adapters does not hold for one that exists.
  EXPECT_EQ(error("base: m\ndefaults: {adapter: {rank: 4}}\n" + job_with("adapter", "init_from: x").substr(8)),
            "parsed");
}

TEST(JobConfig, SweepsBecomeJobsWithReadableNames) {
  const RunConfig run = parse(R"(
base: m
jobs:
  - name: s
    data: {path: d.jsonl}
    train: {epochs: 2}
    sweep:
      train.lr: [1e-4, 3.0e-4]
      adapter.target_modules: [all-linear, [q_proj, v_proj]]
      train.steps: [5]
)");
  std::vector<std::string> names;
  for (const JobConfig& each : run.jobs) names.push_back(each.name);
  EXPECT_THAT(
      names,
      ElementsAre("s-lr1e-4-target_modulesall-linear-steps5", "s-lr1e-4-target_modulesq_proj_v_proj-steps5",
                  "s-lr3.0e-4-target_modulesall-linear-steps5", "s-lr3.0e-4-target_modulesq_proj_v_proj-steps5"));
  EXPECT_EQ(run.jobs[3].train.lr, 3e-4);
  EXPECT_THAT(run.jobs[3].adapter.target_modules, ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(run.jobs[3].train.steps, 5);
  EXPECT_EQ(run.jobs[3].train.epochs, 0);
  EXPECT_EQ(run.jobs[3].save.dir, "adapters/" + names[3]);

  const auto sweep = [](const std::string& axes) {
    return error(job("    data: {path: d}\n    sweep: {" + axes + "}\n"));
  };
  EXPECT_THAT(sweep("lr: [1]"), HasSubstr("JOBS.yaml:5: sweep: \"lr\" must be a dotted key such as train.lr"));
  EXPECT_THAT(sweep("train.lr: 1e-4"), HasSubstr("train.lr must be a list"));
  EXPECT_THAT(sweep("train.lt: [1e-4]"),
              HasSubstr("JOBS.yaml:5: unknown key \"train.lt\"; did you mean \"train.lr\"?"));
  EXPECT_THAT(sweep("train.lr: [1e-4, 5]"), HasSubstr("JOBS.yaml:5: train.lr is 5, it must be above 0 and at most 1"));
  EXPECT_THAT(sweep("train.lr: [1e-4, 1e-4]"), HasSubstr("two jobs are named \"a-lr1e-4\""));
  std::string many = "1";
  for (int k = 2; k <= 40; ++k) many += fmt::format(", {}", k);
  EXPECT_THAT(sweep(fmt::format("train.seed: [{0}], adapter.rank: [{0}]", many)), HasSubstr("more than 1024 jobs"));
}

TEST(JobConfig, UnknownKeysNameThePlaceAndTheNearest) {
  EXPECT_THAT(error("base: m\nbase: n\njobs: []"), HasSubstr("JOBS.yaml:2: the file has \"base\" twice"));
  EXPECT_THAT(error("base: m\njob:\n - {name: a}"),
              HasSubstr("JOBS.yaml:2: unknown key \"job\"; did you mean \"jobs\"?"));
  EXPECT_THAT(error(job("    data: {path: d}\n    trian:\n      lr: 1\n")),
              HasSubstr("JOBS.yaml:5: unknown key \"trian\"; did you mean \"train\"?"));
  EXPECT_THAT(error(job_with("adapter", "rnak: 8")),
              HasSubstr("JOBS.yaml:5: unknown key \"adapter.rnak\"; did you mean \"adapter.rank\"?"));
  EXPECT_THAT(error(job_with("save", "zzzzzzzz: 8")), HasSubstr("known: dir, dtype, every, keep"));
  EXPECT_THAT(error("base: m\ndefaults: {name: x}\n" + job("").substr(8)),
              HasSubstr("JOBS.yaml:2: unknown key \"defaults.name\""));
}

TEST(JobConfig, NamesOfOtherTrainersAreTranslated) {
  EXPECT_THAT(error(job_with("train", "learning_rate: 1e-4")),
              HasSubstr("JOBS.yaml:5: unknown key \"train.learning_rate\"; use \"train.lr\""));
  EXPECT_THAT(error(job_with("adapter", "lora_r: 8")), HasSubstr("use \"adapter.rank\""));
  EXPECT_THAT(error(job_with("train", "gradient-accumulation-steps: 8")), HasSubstr("batch_samples counts the whole"));
  EXPECT_THAT(error("base_model: m\njobs: []"), HasSubstr("JOBS.yaml:1: unknown key \"base_model\"; use \"base\""));
  EXPECT_THAT(error(job_with("train", "schedule: constant_with_warmup")),
              HasSubstr("use \"constant\" (with warmup_steps or warmup_ratio)"));
  EXPECT_THAT(error(job_with("adapter", "init: pissa_niter_16")), HasSubstr("use \"pissa\""));
  // A key of ours in another section.
  EXPECT_THAT(error(job_with("train", "rank: 8")), HasSubstr("unknown key \"train.rank\"; it is \"adapter.rank\""));
  EXPECT_THAT(error("base: m\nlr: 1\njobs: []"), HasSubstr("unknown key \"lr\"; it is \"train.lr\""));
}

TEST(JobConfig, OurNamesInTheAdviceExist) {
  const boost::json::object known = job_config_json(JobConfig());
  for (const char* key : {"learning_rate",
                          "lr_scheduler_type",
                          "num_epochs",
                          "max_steps",
                          "batch_size",
                          "warmup",
                          "max_grad_norm",
                          "adam_beta1",
                          "adam_epsilon",
                          "loraplus_lr_ratio",
                          "data_seed",
                          "lora_r",
                          "lora_alpha",
                          "lora_dropout",
                          "lora_target",
                          "lora_modules_to_save",
                          "use_dora",
                          "lora_layers_to_transform",
                          "peft_use_rslora",
                          "init_lora_weights",
                          "adapter_name_or_path",
                          "trainable_token_indices",
                          "dataset",
                          "validation_file",
                          "val_size",
                          "cutoff_len",
                          "train_on_inputs",
                          "formatting",
                          "eval_steps",
                          "early_stopping_patience",
                          "load_best_model_at_end",
                          "save_steps",
                          "save_total_limit",
                          "adapter_path"}) {
    const std::string advice = instead_of_key(key);
    const size_t dot = advice.find('.'), end = advice.find('"', dot);
    ASSERT_TRUE(advice.starts_with("use \"") && dot < end) << key << ": " << advice;
    const auto* section = known.at(advice.substr(5, dot - 5)).if_object();
    EXPECT_TRUE(section && section->contains(advice.substr(dot + 1, end - dot - 1))) << key << ": " << advice;
  }
}

TEST(JobConfig, OneJobFromFlags) {
  const auto flags = [](std::vector<std::string> set) {
    return parse_job_flags({.base = "m", .data = "d.jsonl", .output = "out/x", .name = "x", .set = std::move(set)});
  };
  const auto refusal = [&](const std::string& set) { return flags({set}).status().message(); };
  const Result<RunConfig> run = flags({"train.lr=1e-3", "train.lr=1e-4", "adapter.target_modules=[q_proj, v_proj]",
                                       "block_tokens=64", "adapter.use_rslora=True"});
  ASSERT_TRUE(run.ok()) << run.status().message();
  EXPECT_EQ(run->base + run->metrics, "mout/x/metrics.jsonl");
  EXPECT_EQ(run->block_tokens, 64);
  EXPECT_EQ(run->jobs[0].name + run->jobs[0].data.path + run->jobs[0].save.dir, "xd.jsonlout/x");
  EXPECT_EQ(run->jobs[0].train.lr, 1e-4);
  EXPECT_TRUE(run->jobs[0].adapter.use_rslora);
  EXPECT_THAT(run->jobs[0].adapter.target_modules, ElementsAre("q_proj", "v_proj"));
  // A value is a value, whatever stands in it.
  EXPECT_THAT(flags({"adapter.target_modules=q_proj,v_proj"})->jobs[0].adapter.target_modules,
              ElementsAre("q_proj,v_proj"));
  EXPECT_THAT(refusal("adapter.target_modules=q_proj, rank: 3"), HasSubstr("must be a list of strings, is a mapping"));
  EXPECT_EQ(refusal("adapter.r=8"), "--set: unknown key \"adapter.r\"; use \"adapter.rank\"");
  EXPECT_EQ(refusal("train.lr=2"), "--set: train.lr is 2, it must be above 0 and at most 1");
  EXPECT_THAT(refusal("foo"), HasSubstr("--set wants KEY=VALUE"));
  EXPECT_THAT(refusal("train.betas=["), HasSubstr("--set train.betas: the value is not YAML"));
  EXPECT_THAT(refusal("data.path=x"), HasSubstr("that is --data"));
  EXPECT_THAT(refusal("output=x"), HasSubstr("that is --output"));
  EXPECT_THAT(refusal("sweep.train.lr=[1e-4]"), HasSubstr("several need a jobs file"));
  EXPECT_THAT(refusal("trian.lr=1"), HasSubstr("--set trian.lr: sections are adapter, data"));
}

TEST(JobConfig, ValuesAreChecked) {
  const struct {
    const char *section, *fields, *message;
  } cases[] = {
      {"train", "lr: 0", "JOBS.yaml:5: train.lr is 0, it must be above 0 and at most 1"},
      {"train", "lr: -1e-4", "train.lr is -1e-4"},
      {"train", "lr: nan", "train.lr is nan, it must be"},
      {"train", "lr: .nan", "train.lr must be a number, is \".nan\""},
      {"train", "lr: inf", "train.lr is inf, it must be"},
      {"train", "lr: 1e999", "train.lr must be a number"},
      {"train", "lr: fast", "train.lr must be a number, is \"fast\""},
      {"train", "lr: [1]", "train.lr must be a number, is a list"},
      {"train", "steps: 1.5", "train.steps must be an integer, is \"1.5\""},
      {"train", "steps: 0", "train.steps is 0, it must be between 1"},
      {"train", "steps: 99999999999999999999", "train.steps must be an integer"},
      {"train", "steps: 5, epochs: 1", "JOBS.yaml:5: train.steps and train.epochs exclude each other; give one"},
      {"train", "steps: 5, warmup_steps: 6", "train.warmup_steps is 6, train.steps only 5"},
      {"train", "betas: [0.9]", "train.betas must be a list of 2 numbers"},
      {"train", "betas: [0.9, 1]", "train.betas is 1, it must be"},
      {"train", "schedule: cos", "train.schedule must be one of constant, linear, cosine, inverse_sqrt, is \"cos\""},
      {"train", "seed: -1", "train.seed is -1"},
      {"train", "weight: 0", "train.weight is 0"},
      {"adapter", "rank: 0", "adapter.rank is 0, it must be between 1 and 512"},
      {"adapter", "dropout: 1", "adapter.dropout is 1"},
      {"adapter", "use_rslora: yes", "adapter.use_rslora must be true or false, is \"yes\""},
      {"adapter", "target_modules: {q: true}", "adapter.target_modules must be a list of strings, is a mapping"},
      {"adapter", "target_modules: []", "target_modules is empty"},
      {"adapter", "target_modules: [all-linear, q_proj]", "stands alone"},
      {"adapter", "rank_pattern: [4]", "adapter.rank_pattern must be a mapping, is a list"},
      {"adapter", "rank_pattern: {q: x}", "adapter.rank_pattern must be an integer"},
      {"adapter", "kind: dora, init: pissa", "adapter.init: pissa and olora are for kind lora"},
      {"adapter", "kind: multilora, num_modules: 64, rank: 17", "adapter.rank times num_modules is 1088"},
      {"adapter", "init: olora, rank: 257", "saved with twice the rank, at most 512"},
      {"adapter", "init: orthogonal, rank: 3", "adapter.rank is 3: init orthogonal needs an even one"},
      {"adapter", "kind: dora, dropout: 0.1", "adapter.dropout: with DoRA"},
      {"adapter", "kind: multilora, lora_bias: true", "adapter.lora_bias: it is not for multilora"},
      {"adapter", "rank: 4, rank_pattern: {q_proj: 300}, init: eva", "adapter.rank is 300 of q_proj: eva may give"},
      {"adapter", "init_from: x, rank: 3", "JOBS.yaml:5: adapter.init_from says what adapter.rank is; leave it out"},
      {"eval", "every: 5", "eval needs data: give data.eval_path or data.eval_split"},
      {"save", "keep: 0", "save.keep is 0"},
      {"save", "5", "save.5"},
      {"data", "path: d", "has \"data\" twice"},
  };
  for (const auto& [section, fields, message] : cases)
    EXPECT_THAT(error(job_with(section, fields)), HasSubstr(message)) << section << ": " << fields;
  EXPECT_EQ(error(job_with("adapter", "init_from: x, dropout: 0.1")), "parsed");
  EXPECT_THAT(error(job("    data: {path: d, train_on_prompt: true, mask_history: true}")),
              HasSubstr("exclude each other"));
  EXPECT_THAT(error(job("    data: {path: d, eval_path: [e, f, e]}")), HasSubstr("data.eval_path names e twice"));
  EXPECT_THAT(error(job("    data: {path: d, eval_path: ''}")), HasSubstr("data.eval_path names no file"));
  EXPECT_THAT(error(job("    data: {path: d, max_length: 3000}")), HasSubstr("a sample must fit a block"));
  EXPECT_THAT(error(job("    data: {}")), HasSubstr("JOBS.yaml:3: job \"a\": data.path is missing"));
}

TEST(JobConfig, RunsAreChecked) {
  EXPECT_THAT(error("jobs: [{name: a}]"), HasSubstr("base is missing"));
  EXPECT_THAT(error("base: m"), HasSubstr("jobs must be a list of at least one job"));
  EXPECT_THAT(error("base: m\njobs: []"), HasSubstr("jobs must be a list of at least one job"));
  EXPECT_THAT(error("base: m\njobs: [5]"), HasSubstr("JOBS.yaml:2: a job must be a mapping"));
  EXPECT_THAT(error("base: m\njobs: [{data: {path: d}}]"), HasSubstr("JOBS.yaml:2: the job has no name"));
  EXPECT_THAT(error("base: m\njobs: [{name: ../a, data: {path: d}}]"), HasSubstr("\"../a\" is no name"));
  EXPECT_THAT(error("base: m\nmemory: lots\njobs: [{name: a}]"), HasSubstr("JOBS.yaml:2: memory: "));
  EXPECT_THAT(error("base: [\n"), HasSubstr("JOBS.yaml:"));
  EXPECT_THAT(error("- a"), HasSubstr("the file must be a mapping, is a list"));
  EXPECT_THAT(error(""), HasSubstr("base is missing"));
  const std::string two = "base: m\ndefaults: {data: {path: d}}\njobs:\n";
  EXPECT_THAT(error(two + "  - name: a\n  - name: a\n"), HasSubstr("two jobs are named \"a\""));
  EXPECT_THAT(error(two + "  - {name: a, save: {dir: x/../y}}\n  - {name: b, save: {dir: y/}}\n"),
              HasSubstr("jobs \"a\" and \"b\" both write to y"));
  EXPECT_EQ(load_run_config("/nowhere/JOBS.yaml").status().code(), StatusCode::kNotFound);
}

TEST(JobConfig, AliasesDoNotGrow) {
  std::string yaml = "base: m\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int k = 1; k < 20; ++k) {
    yaml += fmt::format("a{}: &a{} [", k, k);
    for (int copy = 0; copy < 10; ++copy) yaml += fmt::format("{}*a{}", copy > 0 ? ", " : "", k - 1);
    yaml += "]\n";
  }
  EXPECT_THAT(error(yaml + "jobs: *a19\n"), HasSubstr("unknown key \"a0\""));
}

TEST(LearningRate, IsThatOfTransformers) {
  const auto bytes = read_file("tests/train/fixtures/schedules.json");
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  int compared = 0;
  const boost::json::value table = boost::json::parse(*bytes);
  for (const auto& row : table.as_array()) {
    SCOPED_TRACE(json_text(row.at("schedule")) + json_text(row.at("min_ratio")) + json_text(row.at("warmup")));
    TrainSpec spec = parse(job_with("train", "schedule: " + std::string(row.at("schedule").as_string()))).jobs[0].train;
    spec.lr = 0.5;
    spec.min_ratio = row.at("min_ratio").to_number<double>();
    spec.warmup_steps = row.at("warmup").as_int64();
    const auto& rates = row.at("rates").as_array();
    const int64_t total = row.at("total").as_int64();
    for (size_t step = 0; step < rates.size(); ++step) {
      // Behind the end transformers' cosine and linear rise or fall on; here the last rate stays.
      if (static_cast<int64_t>(step) > total && spec.schedule != LrSchedule::kInverseSqrt) continue;
      EXPECT_NEAR(learning_rate_at(spec, static_cast<int64_t>(step), total), 0.5 * rates[step].to_number<double>(),
                  1e-12)
          << step;
      ++compared;
    }
  }
  EXPECT_GT(compared, 400);
}

TEST(LearningRate, WarmupRatioRoundsUpAndTheFloorHolds) {
  TrainSpec spec{.lr = 1, .schedule = LrSchedule::kInverseSqrt, .min_ratio = 0.5, .warmup_ratio = 0.05};
  EXPECT_EQ(learning_rate_at(spec, 1, 41), 1.0 / 3);  // of 41 steps, 2.05: three
  EXPECT_EQ(learning_rate_at(spec, 3, 41), 1);
  EXPECT_EQ(learning_rate_at(spec, 1000, 41), 0.5);
  spec.schedule = LrSchedule::kCosine;
  EXPECT_EQ(learning_rate_at(spec, 41, 41), learning_rate_at(spec, 99, 41));
  spec.warmup_ratio = 1;
  EXPECT_EQ(learning_rate_at(spec, 40, 41), 40.0 / 41);
}

}  // namespace
}  // namespace lk
