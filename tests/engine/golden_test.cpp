// SPDX-License-Identifier: Apache-2.0
// Our logits, log-probabilities and greedy tokens against transformers + peft in f32: every architecture, every adapter
// kind, alone and in mixed batches.
#include <gtest/gtest.h>

#include <cmath>

#include "lk/engine/engine.h"
#include "lk/sched/scheduler.h"
#include "testing/backends.h"
#include "testing/golden.h"

namespace lk {
namespace {

using testing::Golden;
using testing::GoldenCase;
using testing::GoldenPrompt;
using testing::kGoldenDir;

constexpr double kTolerance = 1e-4;

// Largest difference relative to the largest expected magnitude.
double relative_error(const float* actual, const std::vector<float>& expected) {
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(actual[i]) - expected[i]));
    scale = std::max(scale, std::abs(static_cast<double>(expected[i])));
    if (std::isnan(actual[i])) return 1e9;
  }
  return worst / scale;
}

struct Model {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<UnifiedPool> pool;
  std::unique_ptr<Scheduler> scheduler;
  std::map<std::string, AdapterId> adapters;

  explicit Model(const std::string& directory, SchedulerOptions options = {}, int64_t num_pages = 512) {
    auto backend = testing::make_backend({.num_threads = 2});
    auto weights = load_weights(kGoldenDir + directory, DType::kF32, *backend);
    EXPECT_TRUE(weights.ok()) << weights.status().message();
    const int64_t page = Decoder(*weights, *backend, 1, 1).page_bytes();
    engine = Engine::create({.max_step_tokens = options.max_step_tokens, .memory_bytes = num_pages * page}, *weights,
                            std::move(backend))
                 .value();
    pool = std::make_unique<UnifiedPool>(engine->num_pages());
    scheduler = std::make_unique<Scheduler>(options, *pool, *engine);
  }
  AdapterId adapter(const std::string& directory) {
    if (directory.empty()) return kBaseModel;
    if (const auto it = adapters.find(directory); it != adapters.end()) return it->second;
    auto loaded =
        load_adapter(directory, kGoldenDir + directory, engine->weights().config, engine->weights().checkpoint.get());
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    if (!loaded.ok()) return kBaseModel;
    return adapters[directory] = engine->register_adapter(engine->prepare_adapter(*loaded).value());
  }
  Request request(RequestId id, const GoldenCase& c, const GoldenPrompt& prompt) {
    Request request{.id = id,
                    .adapter = adapter(c.adapter),
                    .prompt = prompt.token_ids,
                    .max_tokens = static_cast<int64_t>(prompt.greedy.size())};
    request.sampling.temperature = 0;
    request.sampling.num_logprobs = 0;
    request.sampling.num_prompt_logprobs = 0;
    request.rope_length = static_cast<int64_t>(prompt.token_ids.size() + prompt.greedy.size());
    return request;
  }
  struct Output {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs, prompt_logprobs;
  };
  std::map<RequestId, Output> run() {
    std::map<RequestId, Output> outputs;
    while (scheduler->has_work()) {
      for (const RequestEvent& event : scheduler->step()) {
        Output& output = outputs[event.id];
        if (event.has_token) {
          output.tokens.push_back(event.token.token);
          output.logprobs.push_back(event.token.logprob);
        }
        for (const TokenLogprob& entry : event.prompt_logprobs) output.prompt_logprobs.push_back(entry.logprob);
      }
      pool->check_integrity();
    }
    return outputs;
  }
};

void expect_golden(const Model::Output& output, const GoldenPrompt& prompt, const std::string& what) {
  EXPECT_EQ(output.tokens, prompt.greedy) << what;
  if (output.tokens == prompt.greedy && !prompt.greedy_logprobs.empty()) {
    EXPECT_LE(relative_error(output.logprobs.data(), prompt.greedy_logprobs), kTolerance) << what;
  }
  ASSERT_EQ(output.prompt_logprobs.size(), prompt.token_ids.size() - 1) << what;
  if (!prompt.prompt_logprobs.empty()) {
    EXPECT_LE(relative_error(output.prompt_logprobs.data(), prompt.prompt_logprobs), kTolerance) << what;
  }
}

// Logits of every position of one sequence, straight through the decoder.
std::vector<float> all_logits(Model& model, const GoldenCase& c, const std::vector<int32_t>& token_ids) {
  const ModelWeights& weights = model.engine->weights();
  const auto length = static_cast<int64_t>(token_ids.size());
  Decoder decoder(std::shared_ptr<const ModelWeights>(&weights, [](const ModelWeights*) {}), model.engine->backend(),
                  length, length);
  const PageGeometry geometry{
      .slice_bytes = decoder.slice_bytes(), .page_bytes = decoder.page_bytes(), .act = weights.act};
  const int64_t kv_pages = (length + kPageTokens - 1) / kPageTokens;
  std::shared_ptr<const ResidentAdapter> resident;
  std::vector<PageId> pages;
  Backend& backend = model.engine->backend();
  DeviceBuffer arena = backend.allocate(kv_pages * geometry.page_bytes);
  if (!c.adapter.empty()) {
    auto host = load_adapter(c.name, kGoldenDir + c.adapter, weights.config, weights.checkpoint.get());
    EXPECT_TRUE(host.ok()) << host.status().message();
    if (!host.ok()) return {};
    const AdapterLayout layout(**host, weights.shape, weights.config.tie_word_embeddings, geometry);
    arena = backend.allocate((kv_pages + layout.num_pages()) * geometry.page_bytes);
    for (int64_t i = layout.num_pages(); i > 0; --i) pages.push_back(static_cast<PageId>(kv_pages + i - 1));
    resident = fill_adapter(layout, *host, pages, arena.data(), backend);
  }
  decoder.set_pool(arena.data());
  const RopeTable rope = make_rope_table(weights.config, length);
  std::vector<int64_t> slots;
  std::vector<int32_t> rows, block_table;
  const auto half = static_cast<size_t>(weights.config.head_dim / 2);
  std::vector<float> cos(half * token_ids.size()), sin(cos.size());
  for (int32_t i = 0; i < length; ++i) {
    slots.push_back(i);
    rows.push_back(i);
    rope_row(rope, i, cos.data() + half * static_cast<size_t>(i), sin.data() + half * static_cast<size_t>(i));
  }
  for (int32_t page = 0; page < kv_pages; ++page) block_table.push_back(page);
  const AttentionSeq sequence{
      .row_begin = 0, .row_end = static_cast<int32_t>(length), .first_position = 0, .block_table = block_table.data()};
  const AdapterRun run{.row_begin = 0, .row_end = static_cast<int32_t>(length), .adapter = resident.get()};
  decoder.forward(
      {.token_ids = token_ids, .slots = slots, .cos = cos, .sin = sin, .sequences = {&sequence, 1}, .runs = {&run, 1}});
  const float* logits = decoder.logits(rows, {&run, 1});
  const int64_t vocab = weights.config.vocab_size;
  std::vector<float> out(static_cast<size_t>(length * vocab));
  for (int64_t row = 0; row < length; ++row)
    backend.read(out.data() + row * vocab, logits + row * decoder.logits_stride(), vocab * 4);
  return out;
}

class GoldenCaseTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenCaseTest, LogitsOfEveryPositionMatch) {
  const GoldenCase& c = Golden::get().find(GetParam());
  Model model(c.model);
  for (const GoldenPrompt& prompt : c.prompts) {
    const std::vector<float> logits = all_logits(model, c, prompt.token_ids);
    ASSERT_FALSE(logits.empty());
    const std::string what = fmt::format("{} prompt of {}", c.name, prompt.token_ids.size());
    if (!prompt.logits.empty()) {
      EXPECT_LE(relative_error(logits.data(), prompt.logits), kTolerance) << what;
    }
    EXPECT_LE(relative_error(logits.data() + logits.size() - prompt.last_logits.size(), prompt.last_logits), kTolerance)
        << what;
  }
}

TEST_P(GoldenCaseTest, GreedyTokensAndLogprobsMatch) {
  const GoldenCase& c = Golden::get().find(GetParam());
  Model model(c.model, {.max_step_tokens = 13});  // chunks that are no multiple of anything
  RequestId id = 0;
  for (const GoldenPrompt& prompt : c.prompts)
    ASSERT_TRUE(model.scheduler->submit(model.request(id++, c, prompt)).ok());
  auto outputs = model.run();
  for (size_t i = 0; i < c.prompts.size(); ++i)
    expect_golden(outputs[static_cast<RequestId>(i)], c.prompts[i],
                  fmt::format("{} prompt of {}", c.name, c.prompts[i].token_ids.size()));
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const GoldenCase& c : Golden::get().cases) names.push_back(c.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, GoldenCaseTest, ::testing::ValuesIn(case_names()),
                         [](const auto& info) { return info.param; });

class GoldenBatchTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenBatchTest, MixedAdaptersInOneBatchMatch) {
  const auto& rows = Golden::get().mixed_batches.at(GetParam());
  Model model(Golden::get().find(rows[0].case_name).model, {.max_step_tokens = 64}, 2048);
  for (size_t i = 0; i < rows.size(); ++i) {
    const GoldenCase& c = Golden::get().find(rows[i].case_name);
    ASSERT_TRUE(model.scheduler->submit(model.request(static_cast<RequestId>(i), c, c.prompts[rows[i].prompt])).ok());
  }
  auto outputs = model.run();
  for (size_t i = 0; i < rows.size(); ++i)
    expect_golden(outputs[static_cast<RequestId>(i)], Golden::get().find(rows[i].case_name).prompts[rows[i].prompt],
                  rows[i].case_name);
}

std::vector<std::string> batch_names() {
  std::vector<std::string> names;
  for (const auto& [name, rows] : Golden::get().mixed_batches) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, GoldenBatchTest, ::testing::ValuesIn(batch_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lk
