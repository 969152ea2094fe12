// SPDX-License-Identifier: Apache-2.0
// Whole runs on the demo's base: what is refused before anything is written, a job that fails beside one that does not,
// and what is left in the end.
#include "lk/train/run.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "lk/base/file.h"
#include "lk/lora/adapter_files.h"
#include "lk/ops/cpu_backend.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

class TrainRunTest : public ::testing::Test {
 protected:
  static constexpr const char* kModel = "examples/demo/model";

  TrainRunTest() : backend_(make_cpu_backend({.num_threads = 1}).value()) {
    base_.directory = kModel;
    base_.weights = load_weights(kModel, DType::kF32, *backend_).value();
    base_.backend = backend_.get();
    base_.tokenizer = Tokenizer::load(kModel).value();
    std::string lines;
    for (int n = 0; n < 24; ++n)
      lines += fmt::format("{{\"prompt\": \"What is {} + {}?\", \"completion\": \" {}\"}}\n", n, 3 * n, 4 * n);
    dir_.write("data.jsonl", lines);
  }

  JobConfig job(const std::string& name) {
    JobConfig job;
    job.name = name;
    job.adapter.rank = 2;
    job.adapter.target_modules = {"q_proj", "down_proj"};
    job.data.path = dir_.file("data.jsonl");
    job.data.render.max_length = 256;
    job.train.batch_samples = 3;
    job.train.steps = 6;
    job.train.lr = 1e-3;
    job.save.dir = dir_.file("out/" + name);
    return job;
  }
  static RunConfig config(std::vector<JobConfig> jobs) {
    RunConfig run;
    run.base = kModel;
    run.dtype = TrainDtype::kF32;
    run.block_tokens = 256;
    run.jobs = std::move(jobs);
    return run;
  }
  Result<std::unique_ptr<TrainRun>> create(const RunConfig& run) {
    TrainRunHooks hooks;
    hooks.on_note = [this](TrainJob& job, const std::string& text) { notes_.push_back(job.plan().name + ": " + text); };
    return TrainRun::create(run, base_, hooks);
  }
  Status train(const RunConfig& config) {
    LK_ASSIGN_OR_RETURN(const auto run, create(config));
    LK_RETURN_IF_ERROR(run->claim());
    return run->train({});
  }
  std::string adapter_of(const JobConfig& job) const {
    return read_file(join_path(job.save.dir, kAdapterWeightsFile)).value();
  }
  std::string best_of(const JobConfig& job, int64_t step) const {
    return join_path(job.save.dir, fmt::format("best/checkpoint-{}/{}", step, kAdapterWeightsFile));
  }
  // The more it learns of numbers, the less it expects the answers it is judged by.
  JobConfig worsening(const std::string& name) {
    JobConfig job = this->job(name);
    dir_.write("held.jsonl", "{\"prompt\": \"What is 1 + 2?\", \"completion\": \" select green apples from trees\"}\n");
    job.data.eval_path = {dir_.file("held.jsonl")};
    job.eval.every = 1;
    job.train.lr = 0.02;
    return job;
  }
  // Whose parameters leave the finite numbers with the first gradient.
  JobConfig broken(const std::string& name) {
    JobConfig job = this->job(name);
    job.adapter.alpha = 1e38;
    return job;
  }

  testing::TempDir dir_;
  std::unique_ptr<Backend> backend_;
  TrainBase base_;
  std::vector<std::string> notes_;
};

TEST_F(TrainRunTest, WhatIsRefusedLeavesNothing) {
  RunConfig run = config({job("a"), job("b")});
  run.memory_bytes = 1 << 20;
  Status status = create(run).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("states of 2 jobs"));

  run = config({job("a"), job("b")});
  run.block_tokens = 8;
  EXPECT_THAT(create(run).status().message(), AllOf(HasSubstr("job a"), HasSubstr("longest sample")));

  run = config({job("a"), job("b")});
  run.jobs[1].adapter.layers_to_transform = {99};
  EXPECT_THAT(create(run).status().message(), AllOf(HasSubstr("job b"), HasSubstr("layer 99")));
  EXPECT_FALSE(file_exists(dir_.file("out")));
}

TEST_F(TrainRunTest, AJobThatFailsIsLeftBehindByTheOthers) {
  const JobConfig alone = job("alone");
  ASSERT_TRUE(train(config({alone})).ok());
  const JobConfig beside = job("beside");
  const Status status = train(config({broken("broken"), beside}));
  EXPECT_THAT(status.message(), AllOf(HasSubstr("1 of 2 jobs failed"), HasSubstr("broken: 3 steps in a row")));
  EXPECT_EQ(adapter_of(beside), adapter_of(alone));
  // Its last good parameters are kept, and not published.
  EXPECT_FALSE(file_exists(dir_.file(std::string("out/broken/") + kAdapterWeightsFile)));
  EXPECT_TRUE(file_exists(dir_.file("out/broken/checkpoints")));
}

TEST_F(TrainRunTest, AFinishedRunIsNotTrainedAgain) {
  const JobConfig a = job("a");
  ASSERT_TRUE(train(config({a})).ok());
  const std::string first = adapter_of(a);
  const auto again = create(config({a})).value();
  EXPECT_EQ(again->job(0).state(), TrainState::kDone);
  ASSERT_TRUE(again->claim().ok());
  EXPECT_TRUE(again->train({}).ok());
  EXPECT_EQ(adapter_of(a), first);
}

TEST_F(TrainRunTest, StoppedAndTakenUpAgainItEndsTheSame) {
  const JobConfig whole = job("whole"), parts = job("parts");
  ASSERT_TRUE(train(config({whole})).ok());
  for (int part = 0; part < 3; ++part) {
    const auto run = create(config({parts})).value();
    ASSERT_TRUE(run->claim().ok());
    const int64_t until = 2 * (part + 1);
    ASSERT_TRUE(run->train([&] { return run->job(0).progress().step >= until; }).ok());
  }
  ASSERT_TRUE(train(config({parts})).ok());  // what is left of it, if anything
  EXPECT_EQ(adapter_of(parts), adapter_of(whole));
}

TEST_F(TrainRunTest, TheBestEvaluationIsWhatRemains) {
  const JobConfig a = worsening("a");
  ASSERT_TRUE(train(config({a})).ok());
  const auto run = create(config({a})).value();
  const TrainProgress& progress = run->job(0).progress();
  ASSERT_LT(progress.best_step, progress.step);
  EXPECT_THAT(notes_, Contains(HasSubstr(fmt::format("a: keeps the adapter of step {}", progress.best_step))));
  EXPECT_EQ(adapter_of(a), read_file(best_of(a, progress.best_step)).value());
}

// A file that is not what was written any more is not passed off as the best.
TEST_F(TrainRunTest, ABestAdapterThatWasDamagedIsNotWritten) {
  const JobConfig a = worsening("a");
  ASSERT_TRUE(train(config({a})).ok());
  const std::string expected = adapter_of(a);
  const int64_t best = create(config({a})).value()->job(0).progress().best_step;
  std::string bytes = read_file(best_of(a, best)).value();
  bytes[bytes.size() - 1] = static_cast<char>(bytes.back() ^ 1);
  ASSERT_TRUE(write_file_atomic(best_of(a, best), bytes).ok());
  std::filesystem::remove(join_path(a.save.dir, kAdapterConfigFile));  // so it is written anew
  notes_.clear();
  ASSERT_TRUE(train(config({a})).ok());
  EXPECT_THAT(notes_, Contains(AllOf(HasSubstr("its best evaluation, was not kept"), HasSubstr("is not the file"))));
  EXPECT_NE(adapter_of(a), expected);
}

// It stands at the evaluation that lost its patience, and goes on from there as if it had had more from the start.
TEST_F(TrainRunTest, AStoppedJobGoesOnWithMorePatience) {
  JobConfig patient = worsening("patient"), hasty = worsening("hasty");
  patient.eval.patience = 3;
  hasty.eval.patience = 1;
  ASSERT_TRUE(train(config({patient})).ok());
  ASSERT_TRUE(train(config({hasty})).ok());
  {
    const auto stopped = create(config({hasty})).value();
    EXPECT_EQ(stopped->job(0).state(), TrainState::kStopped);
    EXPECT_LT(stopped->job(0).progress().step, hasty.train.steps);
  }
  hasty.eval.patience = 3;
  const int64_t before = create(config({hasty})).value()->job(0).progress().step;
  ASSERT_TRUE(train(config({hasty})).ok());
  const auto one = create(config({patient})).value(), other = create(config({hasty})).value();
  EXPECT_EQ(one->job(0).progress().step, other->job(0).progress().step);
  EXPECT_GT(other->job(0).progress().step, before);
  EXPECT_EQ(one->job(0).state(), other->job(0).state());
  EXPECT_EQ(adapter_of(patient), adapter_of(hasty));
}

TEST_F(TrainRunTest, ItCanBeStoppedBeforeItBegins) {
  JobConfig a = job("a"), eva = job("eva");
  a.train.batch_tokens = 40;
  a.train.batch_samples = 0;
  a.train.steps = 0;
  a.train.epochs = 2;
  eva.adapter.init = AdapterInit::kEva;
  eva.data.eval_split = 0.2;
  eva.eval.exact_match = true;
  // Whenever it is asked for: in the index, the survey, the exercises, the base's digest, EVA's start.
  int asked = 0, patience = 1;
  const AskStop stop = [&] { return ++asked >= patience; };
  Status status;
  for (;; patience += 7) {
    asked = 0;
    status = TrainRun::create(config({a, eva}), base_, {}, stop).status();
    if (status.ok()) break;
    ASSERT_EQ(status.code(), StatusCode::kCancelled) << status.message();
    ASSERT_EQ(asked, patience);  // and it does not go on
  }
  EXPECT_GT(patience, 100);
  EXPECT_FALSE(file_exists(dir_.file("out")));
}

TEST_F(TrainRunTest, ADirectoryBelongsToOneRun) {
  const auto first = create(config({job("a")})).value(), second = create(config({job("a")})).value();
  ASSERT_TRUE(first->claim().ok());
  EXPECT_THAT(second->claim().message(), AllOf(HasSubstr("job a"), HasSubstr("written to by another run")));
}

TEST_F(TrainRunTest, AnAdapterOfSomebodyElseIsNotOverwritten) {
  ASSERT_TRUE(make_directories(dir_.file("out/a")).ok());
  dir_.write(std::string("out/a/") + kAdapterWeightsFile, "theirs");
  EXPECT_EQ(create(config({job("a")})).status().code(), StatusCode::kAlreadyExists);
}

}  // namespace
}  // namespace lk
