// SPDX-License-Identifier: Apache-2.0
#include "lk/train/trainer.h"

#include <gmock/gmock.h>

#include <cstring>
#include <map>

#include "dataset/dataset_util.h"
#include "lk/base/rng.h"
#include "lk/ops/cpu_backend.h"
#include "lk/train/job_state.h"
#include "testing/temp_dir.h"
#include "train/roomy_needs.h"

namespace lk {
namespace {
using testing::TempDir;

ModelConfig small_config() {
  return parse_model_config(
             R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
                 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
                 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu"})",
             "config")
      .value();
}

class TrainerTest : public ::testing::Test, public TrainObserver {
 protected:
  void SetUp() override {
    backend_ = make_cpu_backend({.num_threads = 2}).value();
    weights_ = make_dummy_weights(small_config(), DType::kF32, 3, *backend_);
    pass_ = TrainPass::create(weights_, *backend_, {.max_rows = kRows, .needs = roomy_needs(64)}).value();
    std::string lines;
    for (int n = 0; n < 12; ++n)
      lines += fmt::format("{{\"prompt\": \"the number {} is\", \"completion\": \" the number {}\"}}\n", n, n * 7);
    dir_.write("data.jsonl", lines);
    path_ = dir_.file("data.jsonl");
  }

  std::unique_ptr<TrainableAdapter> adapter(int64_t rank, uint64_t seed, TrainableOptions options = {}) {
    Adapter initial;
    const ModelShape& shape = weights_->shape;
    initial.layers.resize(static_cast<size_t>(shape.num_layers));
    const auto draw = [&](std::initializer_list<int64_t> dims, double bound) {
      int64_t n = 1;
      for (int64_t extent : dims) n *= extent;
      Buffer buffer(n * 4);
      for (int64_t i = 0; i < n; ++i)
        buffer.as<float>()[i] =
            static_cast<float>(bound * (2 * random_uniform(seed + initial.owned.size(), static_cast<uint64_t>(i)) - 1));
      const TensorView view(buffer.data(), DType::kF32, dims);
      initial.owned.push_back(std::move(buffer));
      return view;
    };
    for (auto& layer : initial.layers)
      for (int p = 0; p < kNumProjs; ++p) {
        const Proj proj = static_cast<Proj>(p);
        LoraDelta delta{.rank = rank, .scaling = 2};
        delta.a = draw({rank, in_dim(proj, shape)}, 0.2);
        delta.b = draw({out_dim(proj, shape), rank}, 0);
        layer[static_cast<size_t>(p)] = delta;
      }
    return TrainableAdapter::create(initial, *weights_, *backend_, options).value();
  }

  SampleReader reader(uint64_t seed) {
    const auto file = JsonlFile::open(path_).value();
    const auto renderer = std::make_shared<Renderer>(testing::fixture_tokenizer("gpt2"), nullptr, 700, RenderOptions{});
    return {all_records(file), renderer, {.seed = seed}};
  }

  std::unique_ptr<TrainJob> job(const std::string& name, uint64_t seed, TrainJobPlan plan = {}, bool eval = false) {
    plan.name = name;
    if (plan.batch_samples == 0 && plan.batch_tokens == 0) plan.batch_samples = 3;
    if (plan.total_steps == 0) plan.total_steps = 8;
    if (!plan.rate) plan.rate = [](int64_t step) { return 0.01 / (1 + static_cast<double>(step) / 10); };
    plan.dials.clip = 1;
    std::vector<EvalSet> held;
    if (eval) held.push_back({"held", reader(0)});
    return std::make_unique<TrainJob>(plan, adapter(4, seed, {.dropout = 0.1, .dropout_seed = seed}), reader(seed),
                                      std::move(held));
  }

  void run(std::vector<std::unique_ptr<TrainJob>>& jobs, int64_t rounds = 1 << 30) {
    Trainer trainer(*pass_, std::move(jobs), *this);
    while (rounds-- > 0 && trainer.advance()) {
    }
    jobs = std::move(trainer.jobs());
  }

  std::vector<float> values(TrainJob& job) {
    std::vector<float> host(static_cast<size_t>(job.adapter().num_elements()));
    backend_->read(host.data(), job.adapter().values(), job.adapter().num_elements() * 4);
    return host;
  }
  static bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
  }

  void on_step(TrainJob& job, const StepEvent& event) override { losses_[job.plan().name].push_back(event.loss); }
  void on_eval(TrainJob& job, const EvalEvent& event) override { evals_[job.plan().name].push_back(event); }
  void on_end(TrainJob& job) override { ended_.push_back(job.plan().name); }

  static constexpr int64_t kRows = 64;
  TempDir dir_;
  std::string path_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
  std::unique_ptr<TrainPass> pass_;
  std::map<std::string, std::vector<double>> losses_;
  std::map<std::string, std::vector<EvalEvent>> evals_;
  std::vector<std::string> ended_;
};

TEST_F(TrainerTest, LearnsWhatItIsShown) {
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(job("a", 1, {.batch_samples = 12, .total_steps = 60, .rate = [](int64_t) { return 0.02; }}, true));
  run(jobs);
  EXPECT_EQ(jobs[0]->state(), TrainState::kDone);
  EXPECT_EQ(jobs[0]->progress().cursor.epoch, 59 + (jobs[0]->progress().cursor.index == 0 ? 1 : 0));
  EXPECT_LT(losses_["a"].back(), losses_["a"].front() - 0.3);  // a random base allows no more
  ASSERT_EQ(evals_["a"].size(), 1u);                           // at the end
  EXPECT_EQ(evals_["a"][0].samples, 12);
  EXPECT_NEAR(evals_["a"][0].loss, losses_["a"].back(), 0.5);
}

TEST_F(TrainerTest, JobsOfDifferentShapesTrainTogetherAsAlone) {
  const auto make = [&] {
    std::vector<std::unique_ptr<TrainJob>> jobs;
    jobs.push_back(job("few", 1));
    jobs.push_back(job("tokens", 2, {.share = 3, .batch_tokens = 40, .total_steps = 5}));
    jobs.push_back(job("more than a block", 3, {.batch_samples = 11, .total_steps = 3}));
    return jobs;
  };
  std::vector<std::unique_ptr<TrainJob>> together = make();
  run(together);
  const auto losses = losses_;
  losses_.clear();
  for (size_t index = 0; index < together.size(); ++index) {
    EXPECT_EQ(together[index]->state(), TrainState::kDone);
    std::vector<std::unique_ptr<TrainJob>> alone;
    alone.push_back(std::move(make()[index]));
    run(alone);
    EXPECT_TRUE(same(values(*alone[0]), values(*together[index]))) << alone[0]->plan().name;
  }
  EXPECT_EQ(losses, losses_);
}

TEST_F(TrainerTest, AResumedJobGoesOnBitForBit) {
  std::vector<std::unique_ptr<TrainJob>> whole;
  whole.push_back(job("a", 1, {.batch_samples = 5, .total_steps = 9}));
  run(whole);
  const JobIdentity identity{"base", "data", R"({"rank": 4})"};
  std::vector<std::unique_ptr<TrainJob>> first;
  first.push_back(job("a", 1, {.batch_samples = 5, .total_steps = 9}));
  while (first[0]->progress().step < 4) run(first, 1);
  for (const CheckpointPart& part : job_state_parts(*first[0], *backend_, identity))
    ASSERT_TRUE(part.write(dir_.path()).ok());

  std::vector<std::unique_ptr<TrainJob>> second;
  second.push_back(job("a", 1, {.batch_samples = 5, .total_steps = 9}));
  for (const JobIdentity& other :
       {JobIdentity{"x", "data", identity.options}, JobIdentity{"base", "x", identity.options},
        JobIdentity{"base", "data", R"({"rank": 5})"}}) {
    EXPECT_EQ(read_job_state(*second[0], *backend_, other, dir_.path()).code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(second[0]->progress().step, 0);
  }
  ASSERT_TRUE(read_job_state(*second[0], *backend_, identity, dir_.path()).ok());
  EXPECT_EQ(second[0]->progress().step, first[0]->progress().step);
  run(second);
  EXPECT_TRUE(same(values(*second[0]), values(*whole[0])));
}

TEST_F(TrainerTest, AJobThatLeavesTheFiniteNumbersEndsAlone) {
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(job("wild", 1, {.rate = [](int64_t) { return 1e30; }}));
  jobs.push_back(job("calm", 2));
  run(jobs);
  EXPECT_EQ(jobs[0]->state(), TrainState::kFailed);
  EXPECT_THAT(jobs[0]->failure().message(), ::testing::HasSubstr("without a finite loss"));
  EXPECT_EQ(jobs[0]->progress().skipped_steps, 3);
  EXPECT_EQ(jobs[1]->state(), TrainState::kDone);
  std::vector<std::unique_ptr<TrainJob>> alone;
  alone.push_back(job("calm", 2));
  run(alone);
  EXPECT_TRUE(same(values(*alone[0]), values(*jobs[1])));
}

TEST_F(TrainerTest, StopsWhenEvaluationsGainNothing) {
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(
      job("a", 1, {.total_steps = 50, .rate = [](int64_t) { return 0.0; }, .eval_every = 2, .patience = 3}, true));
  run(jobs);
  EXPECT_EQ(jobs[0]->state(), TrainState::kStopped);
  EXPECT_EQ(jobs[0]->progress().step, 8);  // the first evaluation is the best, then three without a gain
  EXPECT_EQ(jobs[0]->progress().best_step, 2);
  // Taken up again it is still stopped.
  const JobIdentity identity{"base", "data", "{}"};
  for (const CheckpointPart& part : job_state_parts(*jobs[0], *backend_, identity))
    ASSERT_TRUE(part.write(dir_.path()).ok());
  const auto again = job("a", 1, jobs[0]->plan(), true);
  ASSERT_TRUE(read_job_state(*again, *backend_, identity, dir_.path()).ok());
  EXPECT_EQ(again->state(), TrainState::kStopped);
}

// What decides is all sets together; each is told by itself, too, as if it were the only one.
TEST_F(TrainerTest, SeveralEvaluationSets) {
  dir_.write("more.jsonl", "{\"text\": \"quite another text\"}\n{\"text\": \"and one more\"}\n");
  const auto renderer = std::make_shared<Renderer>(testing::fixture_tokenizer("gpt2"), nullptr, 700, RenderOptions{});
  const SampleReader more(all_records(JsonlFile::open(dir_.file("more.jsonl")).value()), renderer, {.shuffle = false});
  const auto with = [&](const std::string& name, std::vector<EvalSet> sets) {
    TrainJobPlan plan = job(name, 1, {.total_steps = 2})->plan();
    return std::make_unique<TrainJob>(plan, adapter(4, 1), reader(1), std::move(sets));
  };
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(with("both", {{"held", reader(0)}, {"more", more}}));
  jobs.push_back(with("held", {{"held", reader(0)}}));
  jobs.push_back(with("more", {{"more", more}}));
  run(jobs);
  const EvalEvent& both = evals_.at("both").at(0);
  ASSERT_EQ(both.sets.size(), 2u);
  int64_t samples = 0, tokens = 0;
  double loss = 0, right = 0;
  for (const EvalFigures& set : both.sets) {
    const EvalEvent& alone = evals_.at(&set == both.sets.data() ? "held" : "more").at(0);
    EXPECT_EQ(set.loss, alone.loss);
    EXPECT_EQ(set.accuracy, alone.accuracy);
    EXPECT_EQ(set.samples, alone.samples);
    EXPECT_EQ(alone.sets.at(0).loss, alone.loss);
    samples += set.samples;
    tokens += set.loss_tokens;
    loss += set.loss * static_cast<double>(set.loss_tokens);
    right += set.accuracy * static_cast<double>(set.loss_tokens);
  }
  EXPECT_EQ(both.samples, samples);
  EXPECT_EQ(both.loss_tokens, tokens);
  EXPECT_NEAR(both.loss, loss / static_cast<double>(tokens), 1e-12);
  EXPECT_NEAR(both.accuracy, right / static_cast<double>(tokens), 1e-12);
}

TEST_F(TrainerTest, ASampleLongerThanABlockFailsItsJobByName) {
  std::string lines = "{\"text\": \"";
  for (int n = 0; n < 100; ++n) lines += fmt::format("word{} ", n);
  dir_.write("long.jsonl", lines + "\"}\n");
  path_ = dir_.file("long.jsonl");
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(job("a", 1));
  run(jobs);
  EXPECT_EQ(jobs[0]->state(), TrainState::kFailed);
  EXPECT_THAT(jobs[0]->failure().message(), ::testing::HasSubstr("long.jsonl:1"));
}

TEST_F(TrainerTest, TokensThatTheModelDoesNotHaveFailTheirJobByName) {
  dir_.write("data.jsonl", "{\"text\": \"ab\"}\n");
  const auto file = JsonlFile::open(path_).value();
  const auto renderer =
      std::make_shared<Renderer>(testing::fixture_tokenizer("gpt2"), nullptr, 1024, RenderOptions{});  // the end token
  std::vector<std::unique_ptr<TrainJob>> jobs;
  jobs.push_back(std::make_unique<TrainJob>(job("a", 1)->plan(), adapter(4, 1),
                                            SampleReader(all_records(file), renderer, {}), std::vector<EvalSet>()));
  run(jobs);
  EXPECT_EQ(jobs[0]->state(), TrainState::kFailed);
  EXPECT_THAT(jobs[0]->failure().message(), ::testing::HasSubstr("data.jsonl:1"));
  EXPECT_THAT(jobs[0]->failure().message(), ::testing::HasSubstr("token 1024, the model knows 1024"));
}

}  // namespace
}  // namespace lk
