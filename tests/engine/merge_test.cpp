// SPDX-License-Identifier: Apache-2.0
// Dynamic merging on the real engine: what merging changes (the merged adapter's last bits, within bounds) and what it
// must not change: anybody else's bits, and the base's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <thread>

#include "lk/base/rng.h"
#include "lk/base/sha256.h"
#include "lk/engine/engine.h"
#include "testing/backends.h"
#include "testing/golden.h"

namespace lk {
namespace {

using testing::kGoldenDir;

// Drives the engine step by step, without a scheduler: every step's plan is the test's own.
class Driver {
 public:
  struct Sequence {
    Request request;
    std::vector<int32_t> tokens;
    std::vector<PageId> pages;
    int64_t computed = 0;
    std::vector<float> logprobs;  // of prompt and output tokens
    bool done() const {
      return static_cast<int64_t>(tokens.size() - request.prompt.size()) >= request.max_tokens && computed > 0;
    }
  };

  Driver(const std::string& model, DType act, int64_t num_pages = 4096) {
    auto backend = testing::make_backend({.num_threads = 2});
    weights = load_weights(kGoldenDir + "models/" + model, act, *backend).value();
    const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
    engine =
        Engine::create({.max_step_tokens = 512, .memory_bytes = num_pages * page}, weights, std::move(backend)).value();
    pool = std::make_unique<UnifiedPool>(engine->num_pages());
    model_ = model;
  }
  ~Driver() {
    for (AdapterId id : ids) engine->drop_merge(id);
  }
  AdapterId add(const std::string& name) { return add(read(name)); }
  std::shared_ptr<const Adapter> read(const std::string& name) {
    return load_adapter(name, kGoldenDir + "adapters/" + model_ + "__" + name, weights->config,
                        weights->checkpoint.get())
        .value();
  }
  AdapterId add(const std::shared_ptr<const Adapter>& adapter) {
    const AdapterId id = engine->register_adapter(engine->prepare_adapter(adapter).value());
    EXPECT_TRUE(pool->begin_load(id, engine->footprint(id)));
    engine->start_load(id, pool->adapter_pages(id));
    EXPECT_TRUE(engine->take_finished_loads(true).at(0).status.ok());
    pool->finish_load(id, true);
    pool->pin(id);
    ids.push_back(id);
    return id;
  }
  void start_merge(AdapterId id) {
    ASSERT_TRUE(pool->begin_merge(id, engine->merge_footprint(id).value().num_pages, 0));
    engine->start_merge(id, pool->merge_pages(id));
  }
  MergeResult wait_for_merge() {
    for (;;) {
      if (auto results = engine->take_finished_merges(); !results.empty()) return results.at(0);
      std::this_thread::yield();
    }
  }
  MergeResult merge(AdapterId id) {
    start_merge(id);
    return wait_for_merge();
  }
  void drop(AdapterId id) {
    engine->drop_merge(id);
    pool->release_merge(id);
    pool->check_integrity();
  }
  Sequence sequence(RequestId id, AdapterId adapter, int64_t prompt_length, int64_t max_tokens, uint64_t seed) {
    Sequence s{.request = {.id = id, .adapter = adapter, .max_tokens = max_tokens}};
    Rng rng(seed);
    for (int64_t i = 0; i < prompt_length; ++i)
      s.request.prompt.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(weights->config.vocab_size))));
    s.request.sampling.temperature = 0;
    s.request.sampling.num_logprobs = 0;
    s.request.sampling.num_prompt_logprobs = 0;
    s.request.rope_length = prompt_length + max_tokens;
    s.tokens = s.request.prompt;
    return s;
  }
  // One step: at most `chunk` tokens of every sequence that is not done.
  void step(std::vector<Sequence>& sequences, AdapterId merged, int64_t chunk) {
    StepPlan plan;
    std::vector<Sequence*> planned;
    for (Sequence& s : sequences) {
      if (s.done()) continue;
      const int64_t end = std::min<int64_t>(static_cast<int64_t>(s.tokens.size()), s.computed + chunk);
      while (static_cast<int64_t>(s.pages.size()) * kPageTokens < end) s.pages.push_back(*pool->alloc_kv());
      plan.items.push_back({.request = &s.request,
                            .tokens = s.tokens,
                            .begin = s.computed,
                            .end = end,
                            .block_table = s.pages,
                            .sample = end == static_cast<int64_t>(s.tokens.size()) && s.request.max_tokens > 0,
                            .prompt_logprobs = s.computed + 1 < static_cast<int64_t>(s.request.prompt.size())});
      plan.num_tokens += end - s.computed;
      planned.push_back(&s);
    }
    plan.merged = merged;
    const std::span<ItemResult> results = engine->execute(plan);
    for (size_t i = 0; i < planned.size(); ++i) {
      Sequence& s = *planned[i];
      s.computed = plan.items[i].end;
      for (const TokenLogprob& entry : results[i].prompt_logprobs) s.logprobs.push_back(entry.logprob);
      if (!plan.items[i].sample) continue;
      s.tokens.push_back(results[i].token.token);
      s.logprobs.push_back(results[i].token.logprob);
    }
  }
  void run(std::vector<Sequence>& sequences, AdapterId merged = kBaseModel, int64_t chunk = 64) {
    while (!std::all_of(sequences.begin(), sequences.end(), [](const Sequence& s) { return s.done(); }))
      step(sequences, merged, chunk);
    release(sequences);
  }
  void release(std::vector<Sequence>& sequences) {
    for (Sequence& s : sequences) {
      for (PageId page : s.pages) pool->release_kv(page);
      s.pages.clear();
    }
  }
  std::array<uint8_t, 32> base_checksum() const {
    Sha256 sha;
    for (const DeviceBuffer& buffer : weights->storage) {
      std::vector<std::byte> bytes(static_cast<size_t>(buffer.size_bytes()));
      engine->backend().read(bytes.data(), buffer.data(), buffer.size_bytes());
      sha.update(bytes.data(), bytes.size());
    }
    return sha.finish();
  }

  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<UnifiedPool> pool;
  std::vector<AdapterId> ids;

 private:
  std::string model_;
};

double root_mean_square_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Log-probabilities of one random prompt, every position.
std::vector<float> prompt_logprobs(Driver& driver, AdapterId adapter, AdapterId merged, AdapterId other = kBaseModel) {
  std::vector<Driver::Sequence> sequences{driver.sequence(1, adapter, 60, 0, 42)};
  if (other != kBaseModel) sequences.push_back(driver.sequence(2, other, 9, 0, 43));
  driver.run(sequences, merged);
  return sequences[0].logprobs;
}

struct ModelAdapters {
  std::string model;
  std::vector<std::string> adapters;
};
const std::vector<ModelAdapters> kFixtures = {
    {"llama_mha",
     {"r1", "r8_attention", "r64_linear", "rslora_r3", "patterns", "lora_bias", "dora_r4", "embed_head",
      "modules_to_save", "tokens", "pissa_r4", "fused", "bf16_r16"}},
    {"llama_bias", {"dora_rslora", "fused", "lora_bias"}},
    {"llama_gqa_llama3", {"r8_linear", "layers_to_transform"}},
    {"mistral_window7", {"r8_attention", "r5_all_linear"}},
    {"qwen2_tied", {"dora_r2", "r8_linear"}},
    {"qwen3", {"all_norms", "r6_linear"}}};

// Every kind of adapter: merged log-probabilities agree with unmerged ones to f32 rounding.
TEST(Merge, EveryKindGivesTheSameLogitsInF32) {
  for (const ModelAdapters& fixture : kFixtures) {
    Driver driver(fixture.model, DType::kF32);
    for (const std::string& name : fixture.adapters) {
      const AdapterId id = driver.add(name);
      const std::vector<float> unmerged = prompt_logprobs(driver, id, kBaseModel);
      const MergeResult result = driver.merge(id);
      ASSERT_TRUE(result.status.ok()) << result.status.message();
      EXPECT_LT(result.rounding_loss, 1e-5) << name;
      const std::vector<float> merged = prompt_logprobs(driver, id, id);
      EXPECT_LT(root_mean_square_difference(merged, unmerged), 2e-5) << fixture.model << " " << name;
      EXPECT_NE(merged, unmerged) << fixture.model << " " << name << ": nothing was merged";
      EXPECT_EQ(prompt_logprobs(driver, id, kBaseModel), unmerged) << "un-merging is exact";
      driver.drop(id);
    }
  }
}

// In bf16 the merged model is about as far from f32 as the unmerged one is: rounding W' once costs what rounding
// activations costs.
TEST(Merge, Bf16ErrorIsThatOfBf16) {
  for (const ModelAdapters& fixture : kFixtures) {
    Driver driver(fixture.model, DType::kBF16), exact(fixture.model, DType::kF32);
    for (const std::string& name : fixture.adapters) {
      const AdapterId id = driver.add(name), exact_id = exact.add(name);
      const std::vector<float> want = prompt_logprobs(exact, exact_id, kBaseModel);
      const double noise = root_mean_square_difference(prompt_logprobs(driver, id, kBaseModel), want);
      const MergeResult result = driver.merge(id);
      ASSERT_TRUE(result.status.ok()) << result.status.message();
      const double error = root_mean_square_difference(prompt_logprobs(driver, id, id), want);
      EXPECT_LT(error, 1.6 * noise) << fixture.model << " " << name;
      EXPECT_LT(result.worst_rounding_loss, 0.01) << result.worst_module;  // these adapters change W a lot
      driver.drop(id);
    }
  }
}

// The whole of principle 4 under merging: others' bits while somebody is merged, in every order of modes.
TEST(Merge, OthersAreBitIdenticalWhileModesChange) {
  for (const DType act : {DType::kBF16, DType::kF32}) {
    Driver driver("llama_mha", act);
    const std::vector<std::string> names = {"r8_attention",    "r64_linear", "lora_bias", "dora_r4",
                                            "modules_to_save", "tokens",     "fused"};
    for (const std::string& name : names) driver.add(name);
    const std::vector<AdapterId> mergeable = {driver.ids[0], driver.ids[1], driver.ids[3]};
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Rng rng(seed);
      std::vector<Driver::Sequence> crowd, alone;
      for (int i = 0; i < 12; ++i) {
        const AdapterId adapter = i == 0 ? kBaseModel : driver.ids[rng.below(driver.ids.size())];
        crowd.push_back(driver.sequence(i, adapter, 1 + static_cast<int64_t>(rng.below(50)),
                                        static_cast<int64_t>(rng.below(30)), rng.next()));
        alone.push_back(crowd.back());
      }
      std::set<AdapterId> built, ever_merged;
      while (!std::all_of(crowd.begin(), crowd.end(), [](const auto& s) { return s.done(); })) {
        const AdapterId candidate = mergeable[rng.below(mergeable.size())];
        if (!driver.pool->has_merge(candidate))
          driver.start_merge(candidate);
        else if (rng.below(4) == 0)
          built.erase(candidate), driver.drop(candidate);
        std::vector<MergeResult> results = driver.engine->take_finished_merges();
        // Whether somebody is merged must not hang on how fast this machine builds.
        if (results.empty() && built.empty() && driver.pool->num_merged() > 0)
          results.push_back(driver.wait_for_merge());
        for (const MergeResult& result : results) {
          ASSERT_TRUE(result.status.ok()) << result.status.message();
          built.insert(result.adapter);
        }
        const AdapterId merged = built.empty() || rng.below(3) == 0
                                     ? kBaseModel
                                     : *std::next(built.begin(), static_cast<long>(rng.below(built.size())));
        if (merged != kBaseModel) ever_merged.insert(merged);
        driver.step(crowd, merged, 1 + static_cast<int64_t>(rng.below(20)));
      }
      driver.release(crowd);
      EXPECT_FALSE(ever_merged.empty());
      for (AdapterId id : mergeable)
        if (driver.pool->has_merge(id)) driver.drop(id);
      int compared = 0;
      for (size_t i = 0; i < alone.size(); ++i) {
        if (ever_merged.contains(alone[i].request.adapter)) continue;
        std::vector<Driver::Sequence> one{alone[i]};
        driver.run(one);
        EXPECT_EQ(crowd[i].tokens, one[0].tokens) << "seed " << seed << " request " << i;
        EXPECT_TRUE(std::memcmp(crowd[i].logprobs.data(), one[0].logprobs.data(), one[0].logprobs.size() * 4) == 0)
            << "seed " << seed << " request " << i;
        ++compared;
      }
      EXPECT_GT(compared, 2);
    }
  }
}

// What the merged adapter gets depends on its rows only, not on who else is in the batch.
TEST(Merge, MergedRowsAreBitIdenticalInAnyBatch) {
  Driver driver("llama_mha", DType::kBF16);
  const AdapterId hot = driver.add("r8_attention"), other = driver.add("r64_linear");
  ASSERT_TRUE(driver.merge(hot).status.ok());
  EXPECT_EQ(prompt_logprobs(driver, hot, hot), prompt_logprobs(driver, hot, hot, other));
}

TEST(Merge, TheBaseIsBitIdenticalAfterTenThousandModeChanges) {
  Driver driver("llama_gqa_llama3", DType::kBF16);
  const AdapterId a = driver.add("r8_linear"), b = driver.add("layers_to_transform");
  const auto before = driver.base_checksum();
  const std::vector<float> unmerged = prompt_logprobs(driver, a, kBaseModel);
  for (AdapterId id : {a, b}) ASSERT_TRUE(driver.merge(id).status.ok());
  const std::vector<float> merged = prompt_logprobs(driver, a, a);
  std::vector<Driver::Sequence> sequences;
  const auto restart = [&] {
    driver.release(sequences);
    sequences = {driver.sequence(1, a, 1, 200, 1), driver.sequence(2, b, 1, 200, 2)};
  };
  restart();
  int rebuilt = 0;
  for (int change = 0; change < 10000; ++change) {
    if (sequences[0].done()) restart();
    const AdapterId modes[] = {a, kBaseModel, b};  // every step another one
    driver.step(sequences, modes[change % 3], 1);
    if (change % 50 == 49) {
      const AdapterId again = change % 100 == 49 ? a : b;
      driver.drop(again);
      driver.start_merge(again);
      if (rebuilt++ % 3 == 0) {  // dropped in the middle of building
        driver.drop(again);
        driver.start_merge(again);
      }
      ASSERT_TRUE(driver.wait_for_merge().status.ok());
    }
  }
  driver.release(sequences);
  EXPECT_EQ(driver.base_checksum(), before);
  EXPECT_EQ(prompt_logprobs(driver, a, kBaseModel), unmerged);
  EXPECT_EQ(prompt_logprobs(driver, a, a), merged) << "a rebuilt W' is the same";
}

TEST(Merge, RefusesWhatRoundingWouldLose) {
  Driver driver("llama_mha", DType::kBF16);
  // A delta of about the last bit of W, of which rounding leaves little.
  const auto faint = std::const_pointer_cast<Adapter>(driver.read("r8_attention"));
  for (auto& layer : faint->layers)
    for (auto& delta : layer)
      if (delta) delta->scaling *= 1e-3;
  const AdapterId id = driver.add(faint);
  const MergeResult result = driver.merge(id);
  EXPECT_EQ(result.status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(result.status.message().find("model.layers.0.self_attn.q_proj to bf16 would lose"), std::string::npos)
      << result.status.message();
  EXPECT_NE(result.status.message().find("more than the 10.0 % allowed"), std::string::npos) << result.status.message();
  EXPECT_GT(result.worst_rounding_loss, 0.1);
  driver.drop(id);
  EXPECT_EQ(driver.pool->num_merged(), 0);
}

TEST(Merge, SaysWhyAnAdapterHasNothingToMerge) {
  Driver driver("llama_gqa_llama3", DType::kBF16);
  const Result<MergeFootprint> footprint = driver.engine->merge_footprint(driver.add("head"));
  ASSERT_FALSE(footprint.ok());
  EXPECT_EQ(footprint.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(footprint.status().message().find("nothing to merge"), std::string::npos);
}

// A new version is another adapter: the old one's merged weights serve its last requests and go with it.
TEST(Merge, ReplacedAndUnregisteredWhileMerged) {
  Driver driver("llama_mha", DType::kBF16);
  const AdapterId old_version = driver.add("r8_attention");
  ASSERT_TRUE(driver.merge(old_version).status.ok());
  std::vector<Driver::Sequence> sequences{driver.sequence(1, old_version, 10, 20, 1)};
  for (int i = 0; i < 5; ++i) driver.step(sequences, old_version, 64);
  const AdapterId new_version = driver.add("r8_attention");
  sequences.push_back(driver.sequence(2, new_version, 10, 20, 1));
  driver.run(sequences, old_version);
  driver.drop(old_version);
  driver.pool->unpin(old_version);
  driver.pool->forget(old_version);
  driver.engine->unregister_adapter(old_version);
  std::erase(driver.ids, old_version);
  std::vector<Driver::Sequence> alone{driver.sequence(2, new_version, 10, 20, 1)};
  driver.run(alone);
  EXPECT_EQ(sequences[1].tokens, alone[0].tokens);
  EXPECT_EQ(sequences[1].logprobs, alone[0].logprobs);
  // And while it is being built: dropping waits for the builder, then the pages may be anybody's.
  driver.start_merge(new_version);
  driver.drop(new_version);
  driver.pool->unpin(new_version);
  driver.pool->forget(new_version);
  driver.engine->unregister_adapter(new_version);
  std::erase(driver.ids, new_version);
  EXPECT_TRUE(driver.engine->take_finished_merges().empty());
}

}  // namespace
}  // namespace lk
