// SPDX-License-Identifier: Apache-2.0
// Trained together equals trained alone, bit for bit: jobs of every kind share blocks that are cut at random, come and
// go between steps, and are held against each job's run by itself.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>

#include "testing/golden.h"

#include "lk/base/rng.h"
#include "lk/ops/cpu_backend.h"
#include "lk/train/train_pass.h"
#include "train/roomy_needs.h"

namespace lk {
namespace {
using testing::kGoldenDir;

constexpr int64_t kMaxRows = 96;
constexpr int kSteps = 3;

struct Kind {
  std::string adapter;  // of the fixtures
  TrainableOptions options;
  double density = 0;    // > 0: values on a mask as well
  bool overlay = false;  // on a base with a change below
};
std::vector<Kind> kinds_of(const std::string& model) {
  if (model == "llama_mha")
    return {{"r8_attention", {}},
            {"r64_linear", {}},
            {"rslora_r3", {}},
            {"patterns", {}},
            {"lora_bias", {}},
            {"dora_r4", {}},
            {"embed_head", {}},
            {"modules_to_save", {}},
            {"final_norm", {}},
            {"tokens", {}},
            {"pissa_r4", {.frozen_half = true}},
            {"r8_attention", {.num_modules = 2}},
            {"r8_attention", {.num_modules = 1, .freeze_a = true, .freeze_b = true}},
            {"r64_linear", {.freeze_a = true}},
            {"r64_linear", {.dropout = 0.1, .dropout_seed = 5}},
            {"embed_head", {.dropout = 0.3, .dropout_seed = 6}},
            {"r64_linear", {.num_modules = 4, .dropout = 0.2}},
            {"r8_attention", {}, 0.3},
            {"final_norm", {}, 1},
            {"r64_linear", {.dropout = 0.1}, 0.05, true},
            {"r8_attention", {}, 0, true}};
  if (model == "mistral_window7")  // shorter than most samples
    return {{"r8_attention", {}}, {"r5_all_linear", {}}, {"r5_all_linear", {.freeze_b = true, .dropout = 0.2}}};
  if (model == "qwen3")
    return {{"all_norms", {}}, {"r6_linear", {}}, {"r6_linear", {.num_modules = 3, .dropout = 0.1}}};
  return {{"r8_linear", {}}, {"tokens", {}}, {"embed", {}}, {"head", {.dropout = 0.2}}, {"layers_to_transform", {}}};
}

struct Job {
  Kind kind;
  std::unique_ptr<TrainableAdapter> adapter;
  struct Sample {
    std::vector<int32_t> ids;
    std::vector<float> weights;
  };
  std::vector<std::vector<Sample>> steps;
  std::vector<float> losses;  // of every row, in order
  double weight(size_t step) const {
    double sum = 0;
    for (const Sample& sample : steps[step])
      for (size_t t = 1; t < sample.ids.size(); ++t) sum += static_cast<double>(sample.weights[t]);
    return sum;
  }
  uint64_t key(size_t step, size_t sample) const { return mix64(step * 1000 + sample); }
};

struct Bench {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<TrainPass> pass;

  Bench(const std::string& model, DType act, int threads, Checkpointing level, std::optional<CpuIsa> isa) {
    backend = make_cpu_backend({.num_threads = threads, .isa = isa}).value();
    weights = load_weights(kGoldenDir + "models/" + model, act, *backend).value();
    pass = TrainPass::create(weights, *backend,
                             {.max_rows = kMaxRows, .needs = roomy_needs(7 * 64), .checkpointing = level})
               .value();
  }
  std::unique_ptr<TrainableAdapter> adapter(const std::string& model, const Kind& kind) {
    const auto initial = load_adapter("a", kGoldenDir + "adapters/" + model + "__" + kind.adapter, weights->config,
                                      weights->checkpoint.get())
                             .value();
    TrainableOptions options = kind.options;
    std::vector<ModuleId> modules;
    for (int64_t layer = 0; layer < weights->shape.num_layers; ++layer)
      for (const Proj proj : {Proj::kQ, Proj::kO, Proj::kUp, Proj::kDown}) modules.push_back(ModuleId::of(layer, proj));
    if (kind.density > 0) {
      const SparseMask mask = SparseMask::draw(modules, weights->shape, kind.density, 3);
      SparseValues values;
      for (const auto& [id, module] : mask.modules())
        for (int64_t k = 0; k < module.nnz(); ++k)
          values[id].push_back(0.02f * static_cast<float>(random_normal(9, static_cast<uint64_t>(k))));
      options.mask = DeviceMask::create(mask, *backend).value();
      options.sparse = std::make_shared<SparseValues>(std::move(values));
    }
    if (kind.overlay)
      options.overlay = BaseOverlay::create(*weights, *backend, modules, [](ModuleId, std::span<float> w) {
                          for (size_t i = 0; i < w.size(); ++i)
                            w[i] += 0.02f * static_cast<float>(random_normal(11, i));
                        }).value();
    return TrainableAdapter::create(*initial, *weights, *backend, options).value();
  }
};

Job::Sample draw_sample(Rng& rng, int64_t vocab) {
  Job::Sample sample;
  const uint64_t length = 2 + rng.below(20);
  for (uint64_t t = 0; t < length; ++t) {
    sample.ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
    sample.weights.push_back(t + 1 == length ? 1.0f : static_cast<float>(rng.below(3)) / 2);
  }
  return sample;
}

// Runs one step of `jobs` together. Every job's samples stay in order; how many of them stand in a block, and beside
// whom, is drawn.
void run_step(Bench& bench, const std::vector<Job*>& jobs, size_t step, Rng& rng) {
  std::vector<size_t> next(jobs.size(), 0);
  for (;;) {
    TokenBlock block;
    std::vector<std::pair<Job*, int64_t>> rows;  // which job the rows up to here belong to
    for (size_t j = 0; j < jobs.size(); ++j) {
      const auto& samples = jobs[j]->steps[step];
      for (uint64_t count = rng.below(3); count > 0 && next[j] < samples.size(); --count) {
        const Job::Sample& sample = samples[next[j]];
        if (block.num_rows() + static_cast<int64_t>(sample.ids.size()) > kMaxRows) break;
        block.add(sample.ids, sample.weights, jobs[j]->key(step, next[j]), jobs[j]->adapter.get());
        rows.emplace_back(jobs[j], block.num_rows());
        ++next[j];
      }
    }
    if (block.num_rows() > 0) {
      const RowLosses losses = bench.pass->forward_backward(block);
      int64_t row = 0;
      for (const auto& [job, end] : rows)
        for (; row < end; ++row) job->losses.push_back(losses.losses[static_cast<size_t>(row)]);
    }
    bool done = true;
    for (size_t j = 0; j < jobs.size(); ++j) done &= next[j] == jobs[j]->steps[step].size();
    if (done) break;
  }
  for (Job* job : jobs)
    ASSERT_TRUE(
        job->adapter->step({.rate = 0.01, .decay = 0.1, .b_rate_ratio = 2, .clip = 1}, job->weight(step)).finite);
}

std::vector<float> values_of(Bench& bench, TrainableAdapter& adapter) {
  std::vector<float> values(static_cast<size_t>(adapter.num_elements()));
  bench.backend->read(values.data(), adapter.values(), adapter.num_elements() * 4);
  return values;
}

struct Setting {
  std::string model;
  DType act;
  uint64_t seed;
};

class TrainIsolation : public ::testing::TestWithParam<Setting> {};

TEST_P(TrainIsolation, TogetherIsAloneBitForBit) {
  const auto& [model, act, seed] = GetParam();
  Rng rng(seed);
  const std::vector<CpuIsa> isas = supported_cpu_isas();
  const CpuIsa isa = isas[rng.below(isas.size())];
  const auto level = [&] { return static_cast<Checkpointing>(rng.below(3)); };
  Bench together(model, act, 1 + static_cast<int>(rng.below(3)), level(), isa);
  const std::vector<Kind> kinds = kinds_of(model);
  std::vector<Job> jobs(2 + rng.below(4));
  std::vector<size_t> first(jobs.size()), last(jobs.size());  // steps a job takes part in
  for (size_t j = 0; j < jobs.size(); ++j) {
    jobs[j].kind = kinds[rng.below(kinds.size())];
    first[j] = rng.below(kSteps);
    last[j] = first[j] + rng.below(kSteps - first[j]);
    for (int step = 0; step < kSteps; ++step) {
      auto& samples = jobs[j].steps.emplace_back();
      for (uint64_t n = 1 + rng.below(4); n > 0; --n)
        samples.push_back(draw_sample(rng, together.weights->shape.vocab_size));
    }
    jobs[j].adapter = together.adapter(model, jobs[j].kind);
  }
  for (size_t step = 0; step < kSteps; ++step) {
    std::vector<Job*> present;
    for (size_t j = 0; j < jobs.size(); ++j)
      if (first[j] <= step && step <= last[j]) present.push_back(&jobs[j]);
    run_step(together, present, step, rng);
  }
  for (size_t j = 0; j < jobs.size(); ++j) {
    Bench alone(model, act, 1 + static_cast<int>(rng.below(3)), level(), isa);
    Job job{.kind = jobs[j].kind, .adapter = alone.adapter(model, jobs[j].kind), .steps = jobs[j].steps, .losses = {}};
    for (size_t step = first[j]; step <= last[j]; ++step) run_step(alone, {&job}, step, rng);
    ASSERT_EQ(job.losses.size(), jobs[j].losses.size());
    EXPECT_EQ(0, std::memcmp(job.losses.data(), jobs[j].losses.data(), job.losses.size() * 4)) << job.kind.adapter;
    const std::vector<float> expected = values_of(alone, *job.adapter), actual = values_of(together, *jobs[j].adapter);
    ASSERT_EQ(expected.size(), actual.size());
    for (const Param& param : job.adapter->params())
      EXPECT_EQ(0, std::memcmp(expected.data() + param.offset, actual.data() + param.offset,
                               static_cast<size_t>(param.size()) * 4))
          << param.name() << " of " << job.kind.adapter << " in " << job.kind.options.num_modules << " modules, "
          << to_string(isa);
  }
}

// Blocks of more rows than the MLP and the head take at a time give what small ones give.
TEST(TrainBlocks, WhereABlockIsCutInsideDoesNotShow) {
  for (DType act : {DType::kF32, DType::kBF16}) {
    Bench bench("llama_mha", act, 2, Checkpointing::kNone, std::nullopt);
    const auto large =
        TrainPass::create(bench.weights, *bench.backend, {.max_rows = 1500, .needs = roomy_needs(7 * 64)}).value();
    for (const Kind& kind : kinds_of("llama_mha")) {
      std::vector<float> gradients[2];
      for (const bool together : {false, true}) {
        const auto first = bench.adapter("llama_mha", kind), second = bench.adapter("llama_mha", kind);
        Rng rng(5);
        TokenBlock all;
        for (int n = 0; n < 120; ++n) {
          const Job::Sample sample = draw_sample(rng, bench.weights->shape.vocab_size);
          TrainableAdapter* adapter = n < 60 ? first.get() : second.get();
          TokenBlock one;
          (together ? all : one).add(sample.ids, sample.weights, mix64(static_cast<uint64_t>(n)), adapter);
          if (!together) bench.pass->forward_backward(one);
        }
        if (together) {
          ASSERT_GT(all.num_rows(), 1100);
          large->forward_backward(all);
        }
        for (TrainableAdapter* adapter : {first.get(), second.get()}) {
          adapter->finish_gradient();
          std::vector<float> host(static_cast<size_t>(adapter->num_states()));
          bench.backend->read(host.data(), adapter->gradients(), adapter->num_states() * 4);
          gradients[together].insert(gradients[together].end(), host.begin(), host.end());
        }
      }
      ASSERT_EQ(gradients[0].size(), gradients[1].size());
      EXPECT_EQ(0, std::memcmp(gradients[0].data(), gradients[1].data(), gradients[0].size() * 4)) << kind.adapter;
    }
  }
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  for (const char* model : {"llama_mha", "llama_gqa_llama3", "qwen3", "mistral_window7"})
    for (DType act : {DType::kF32, DType::kBF16})
      for (uint64_t seed = 0; seed < 8; ++seed) all.push_back({model, act, seed});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Drawn, TrainIsolation, ::testing::ValuesIn(settings()), [](const auto& info) {
  return info.param.model + "_" + to_string(info.param.act) + "_" + std::to_string(info.param.seed);
});

}  // namespace
}  // namespace lk
