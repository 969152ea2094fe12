// SPDX-License-Identifier: Apache-2.0
// Weighted sums of adapters against PEFT's add_weighted_adapter, and mean-pooled embeddings against transformers, in
// f32 (tools/make_golden/extras.py).
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <bit>
#include <cmath>

#include "lk/base/rng.h"
#include "lk/engine/engine.h"
#include "lk/lora/compose.h"
#include "lk/sched/scheduler.h"
#include "testing/backends.h"
#include "testing/golden.h"

namespace lk {
namespace {

using testing::kGoldenDir;

struct Model {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<UnifiedPool> pool;
  std::unique_ptr<Scheduler> scheduler;

  explicit Model(const std::string& directory, const SchedulerOptions& options = {}, int64_t num_pages = 512,
                 DType act = DType::kF32) {
    auto backend = testing::make_backend({.num_threads = 2});
    auto weights = load_weights(kGoldenDir + directory, act, *backend).value();
    const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
    engine = Engine::create({.max_step_tokens = options.max_step_tokens, .memory_bytes = num_pages * page}, weights,
                            std::move(backend))
                 .value();
    pool = std::make_unique<UnifiedPool>(engine->num_pages());
    scheduler = std::make_unique<Scheduler>(options, *pool, *engine);
  }
  std::shared_ptr<const Adapter> load(const std::string& directory) const {
    return load_adapter(directory, kGoldenDir + directory, engine->weights().config, engine->weights().checkpoint.get())
        .value();
  }
  AdapterId add(std::shared_ptr<const Adapter> adapter) {
    return engine->register_adapter(engine->prepare_adapter(std::move(adapter)).value());
  }
  std::map<RequestId, std::vector<double>> hidden_sums() {
    std::map<RequestId, std::vector<double>> sums;
    while (scheduler->has_work())
      for (RequestEvent& event : scheduler->step())
        if (!event.hidden_sum.empty()) sums[event.id] = std::move(event.hidden_sum);
    return sums;
  }
};

struct Extras {
  boost::json::value root = boost::json::parse(read_file(kGoldenDir + "extras.json").value());
  std::shared_ptr<const TensorStore> store = TensorStore::open_file(kGoldenDir + "extras.safetensors").value();

  std::vector<float> floats(const boost::json::value& key) const {
    const TensorView* view = store->find(std::string(key.as_string()));
    std::vector<float> values(static_cast<size_t>(view->num_elements()));
    view->copy_to(values.data());
    return values;
  }
  static std::vector<int32_t> tokens(const boost::json::value& prompt) {
    std::vector<int32_t> ids;
    for (const auto& id : prompt.at("token_ids").as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
    return ids;
  }
};

TEST(ExtrasGolden, WeightedSumsGiveThePeftLogits) {
  const Extras extras;
  for (const auto& c : extras.root.at("sums").as_array()) {
    Model model(std::string(c.at("model").as_string()));
    std::vector<WeightedAdapter> parts;
    for (const auto& part : c.at("parts").as_array())
      parts.push_back({model.load(std::string(part.at("adapter").as_string())), part.at("weight").to_number<double>()});
    const auto sum = compose_adapters("sum", parts);
    ASSERT_TRUE(sum.ok()) << sum.status().message();
    const AdapterId id = model.add(*sum);
    const int64_t vocab = model.engine->weights().config.vocab_size;
    for (const auto& prompt : c.at("prompts").as_array()) {
      Request request{.id = 1, .adapter = id, .prompt = Extras::tokens(prompt), .max_tokens = 1};
      request.sampling.temperature = 0;
      request.sampling.num_logprobs = static_cast<int>(vocab);
      ASSERT_TRUE(model.scheduler->submit(request).ok());
      std::vector<std::pair<int32_t, float>> top;
      while (model.scheduler->has_work())
        for (const RequestEvent& event : model.scheduler->step())
          if (event.has_token) top = event.token.top;
      ASSERT_EQ(top.size(), static_cast<size_t>(vocab));
      const std::vector<float> logits = extras.floats(prompt.at("last_logits_key"));
      double max = -1e30, total = 0, scale = 0;
      for (const float x : logits) max = std::max(max, static_cast<double>(x));
      for (const float x : logits)
        total += std::exp(x - max), scale = std::max(scale, std::abs(static_cast<double>(x)));
      for (const auto& [token, logprob] : top)
        EXPECT_NEAR(logprob, logits[static_cast<size_t>(token)] - max - std::log(total), 1e-4 * scale)
            << c.at("name") << " token " << token;
    }
  }
}

TEST(ExtrasGolden, EmbeddingsAreTheNormalisedMeanOfTheLastHiddenStates) {
  const Extras extras;
  for (const auto& c : extras.root.at("pooled").as_array()) {
    Model model(std::string(c.at("model").as_string()), {.max_step_tokens = 16});
    const AdapterId id =
        c.at("adapter").is_null() ? kBaseModel : model.add(model.load(std::string(c.at("adapter").as_string())));
    RequestId next = 0;
    for (const auto& prompt : c.at("prompts").as_array())
      ASSERT_TRUE(model.scheduler
                      ->submit({.id = next++,
                                .adapter = id,
                                .prompt = Extras::tokens(prompt),
                                .max_tokens = 0,
                                .pooling = Pooling::kMean})
                      .ok());
    const auto sums = model.hidden_sums();
    next = 0;
    for (const auto& prompt : c.at("prompts").as_array()) {
      const std::vector<float> expected = extras.floats(prompt.at("embedding_key"));
      const std::vector<double>& sum = sums.at(next++);
      ASSERT_EQ(sum.size(), expected.size());
      double squares = 0;
      for (const double x : sum) squares += x * x;
      for (size_t d = 0; d < sum.size(); ++d)
        EXPECT_NEAR(sum[d] / std::sqrt(squares), expected[d], 1e-5) << c.at("name") << " dimension " << d;
    }
  }
}

// Alone, in a batch with others, in chunks, after losing its pages: the same bits.
TEST(HiddenSum, DoesNotDependOnTheBatch) {
  const std::vector<std::string> names{"r64_linear", "dora_r4", "final_norm"};
  Model alone("models/llama_mha", {.max_step_tokens = 512}, 4096, DType::kBF16);
  std::vector<AdapterId> ids{kBaseModel};
  int64_t largest = 0;
  for (const std::string& name : names) {
    ids.push_back(alone.add(alone.load("adapters/llama_mha__" + name)));
    largest = std::max(largest, alone.engine->footprint(ids.back()));
  }
  Model crowd("models/llama_mha", {.max_step_tokens = 13, .max_running = 8}, largest + 12, DType::kBF16);
  for (size_t i = 0; i < names.size(); ++i) {
    const AdapterId id = ids[i + 1];
    const std::string& name = names[i];
    ASSERT_EQ(crowd.add(crowd.load("adapters/llama_mha__" + name)), id);
  }
  std::vector<Request> requests;
  Rng rng(3);
  for (RequestId id = 0; id < 24; ++id) {
    Request request{.id = id, .adapter = ids[rng.below(ids.size())], .max_tokens = 0, .pooling = Pooling::kMean};
    if (id % 4 == 3) {  // somebody who decodes and takes pages
      request.max_tokens = 60;
      request.pooling = Pooling::kNone;
    }
    Rng prompt(rng.below(3));  // shared prefixes
    const uint64_t length = 1 + rng.below(90);
    for (uint64_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>(prompt.below(131)));
    requests.push_back(request);
  }
  // Who is preempted depends on when the loader is done: until somebody was.
  for (int round = 0; round < 100 && crowd.scheduler->stats().num_preemptions == 0; ++round) {
    int64_t accepted = 0;
    std::vector<bool> taken;
    for (const Request& request : requests) {
      taken.push_back(crowd.scheduler->submit(request).ok());
      accepted += taken.back();
    }
    ASSERT_GT(accepted, 16);
    const auto sums = crowd.hidden_sums();
    crowd.pool->check_integrity();
    for (const Request& request : requests) {
      if (request.pooling == Pooling::kNone || !taken[static_cast<size_t>(request.id)]) continue;
      ASSERT_TRUE(alone.scheduler->submit(request).ok());
      const auto expected = alone.hidden_sums();
      ASSERT_EQ(sums.at(request.id).size(), expected.at(request.id).size());
      for (size_t d = 0; d < expected.at(request.id).size(); ++d)
        ASSERT_EQ(std::bit_cast<uint64_t>(sums.at(request.id)[d]), std::bit_cast<uint64_t>(expected.at(request.id)[d]))
            << "request " << request.id;
    }
  }
  EXPECT_GT(crowd.scheduler->stats().num_preemptions, 0);
}

}  // namespace
}  // namespace lk
