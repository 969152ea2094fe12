// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/compose.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "lk/io/safetensors.h"

namespace lk {
namespace {

using ::testing::HasSubstr;

const std::string kRoot = "tests/golden/fixtures/";

std::shared_ptr<const Adapter> load(const std::string& base, const std::string& name) {
  const std::string model = kRoot + "models/" + base;
  const auto checkpoint = TensorStore::open_model(model).value();
  auto adapter =
      load_adapter(name, kRoot + "adapters/" + base + "__" + name, load_model_config(model).value(), checkpoint.get());
  EXPECT_TRUE(adapter.ok()) << adapter.status().message();
  return *adapter;
}

std::vector<float> floats(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  view.copy_to(values.data());
  return values;
}

// scaling * B A, in f64.
std::vector<double> dense(const TensorView& a, const TensorView& b, double scaling) {
  const std::vector<float> x = floats(a), y = floats(b);
  const auto rank = static_cast<size_t>(a.dim(0)), in = static_cast<size_t>(a.dim(1)),
             out = static_cast<size_t>(b.dim(0));
  std::vector<double> product(out * in);
  for (size_t o = 0; o < out; ++o)
    for (size_t k = 0; k < rank; ++k)
      for (size_t i = 0; i < in; ++i)
        product[o * in + i] += scaling * static_cast<double>(y[o * rank + k]) * static_cast<double>(x[k * in + i]);
  return product;
}
void add(std::vector<double>& to, const std::vector<double>& values, double weight) {
  to.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) to[i] += weight * values[i];
}
void expect_near(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-6) << i;
}

TEST(Compose, EveryDeltaIsTheWeightedSum) {
  const std::vector<WeightedAdapter> parts{{load("llama_mha", "lora_bias"), 0.5},
                                           {load("llama_mha", "rslora_r3"), -1.25},
                                           {load("llama_mha", "bf16_r16"), 2},
                                           {load("llama_mha", "embed_head"), 0.75},
                                           {load("llama_mha", "embed_rslora"), -3}};
  const auto sum = compose_adapters("all", parts).value();
  EXPECT_EQ(sum->name, "all");
  int num_bias = 0;
  for (size_t layer = 0; layer < sum->layers.size(); ++layer)
    for (size_t proj = 0; proj < kNumProjs; ++proj) {
      std::vector<double> expected, bias;
      int64_t rank = 0;
      for (const auto& [adapter, weight] : parts) {
        const auto& delta = adapter->layers[layer][proj];
        if (!delta) continue;
        rank += delta->rank;
        add(expected, dense(delta->a, delta->b, delta->scaling), weight);
        if (!delta->bias.defined()) continue;
        const std::vector<float> own = floats(delta->bias);
        add(bias, std::vector<double>(own.begin(), own.end()), weight * delta->scaling);
      }
      const auto& actual = sum->layers[layer][proj];
      ASSERT_EQ(actual.has_value(), rank > 0);
      if (rank == 0) continue;
      EXPECT_EQ(actual->rank, rank);
      expect_near(dense(actual->a, actual->b, actual->scaling), expected);
      ASSERT_EQ(actual->bias.defined(), !bias.empty());
      if (bias.empty()) continue;
      ++num_bias;
      const std::vector<float> own = floats(actual->bias);
      std::vector<double> scaled;
      add(scaled, std::vector<double>(own.begin(), own.end()), actual->scaling);
      expect_near(scaled, bias);
    }
  EXPECT_EQ(num_bias, 2 * 3);
  ASSERT_TRUE(sum->embedding && sum->lm_head);
  EXPECT_EQ(sum->embedding->rank, 5 + 3);
  std::vector<double> expected;
  for (size_t part : {size_t{3}, size_t{4}}) {
    const auto& delta = *parts[part].adapter->embedding;
    add(expected, dense(delta.a, delta.b, delta.scaling), parts[part].weight);
  }
  expect_near(dense(sum->embedding->a, sum->embedding->b, sum->embedding->scaling), expected);
  expected.clear();
  const LoraDelta& head = *parts[3].adapter->lm_head;
  add(expected, dense(head.a, head.b, head.scaling), 0.75);
  expect_near(dense(sum->lm_head->a, sum->lm_head->b, sum->lm_head->scaling), expected);
}

TEST(Compose, RanksAddUpAndTheDigestTellsSumsApart) {
  const auto one = load("llama_mha", "r1"), eight = load("llama_mha", "r8_attention"),
             head = load("llama_mha", "embed_head");
  const auto digest = [](std::vector<WeightedAdapter> parts) { return compose_adapters("s", parts).value()->digest; };
  EXPECT_EQ(compose_adapters("s", std::vector<WeightedAdapter>{{one, 1}, {eight, 1}, {eight, 1}}).value()->max_rank,
            17);
  const auto heads = load("llama_mha", "embed_rslora");
  EXPECT_EQ(compose_adapters("s", std::vector<WeightedAdapter>{{heads, 1}, {heads, 1}}).value()->max_rank, 6)
      << "the embedding's";
  EXPECT_EQ(digest({{one, 1}, {eight, 2}}), digest({{one, 1}, {eight, 2}}));
  EXPECT_NE(digest({{one, 1}, {eight, 2}}), digest({{one, 2}, {eight, 1}}));
  EXPECT_NE(digest({{one, 1}}), one->digest);
}

// What a sum takes is what it says it takes.
TEST(Compose, ASumIsOneBlockOfMemory) {
  const auto eight = load("llama_mha", "r8_attention"), head = load("llama_mha", "embed_head");
  const auto sum = compose_adapters("s", std::vector<WeightedAdapter>{{eight, 1}, {head, -2}}).value();
  ASSERT_EQ(sum->owned.size(), 1u);
  const std::byte* begin = sum->owned[0].data();
  std::vector<std::pair<const std::byte*, int64_t>> tensors;
  const auto add_tensor = [&](const TensorView& view) {
    if (view.defined()) tensors.emplace_back(static_cast<const std::byte*>(view.raw()), view.num_elements() * 4);
  };
  const auto add_delta = [&](const LoraDelta& delta) {
    for (const TensorView* view : {&delta.a, &delta.b, &delta.bias}) add_tensor(*view);
  };
  for (const auto& layer : sum->layers)
    for (const auto& delta : layer)
      if (delta) add_delta(*delta);
  if (sum->lm_head) add_delta(*sum->lm_head);
  if (sum->embedding) add_tensor(sum->embedding->a), add_tensor(sum->embedding->b);
  ASSERT_GT(tensors.size(), 4u);
  std::ranges::sort(tensors);
  EXPECT_EQ(tensors[0].first, begin);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::byte* limit = i + 1 < tensors.size() ? tensors[i + 1].first : begin + sum->owned[0].size_bytes();
    EXPECT_LE(tensors[i].first + tensors[i].second, limit) << i;
    EXPECT_EQ((tensors[i].first - begin) % 64, 0);
  }
}

// Deltas that begin to act at different tokens have no sum.
TEST(Compose, ActivatedOnesByTheSameTokensOnly) {
  const std::string hub = "tests/golden/hub/", model = hub + "models/untied";
  const auto checkpoint = TensorStore::open_model(model).value();
  const auto of_hub = [&](const std::string& name) {
    return load_adapter(name, hub + "adapters/untied__" + name, load_model_config(model).value(), checkpoint.get())
        .value();
  };
  const auto activated = of_hub("activated_plain");
  const std::vector<WeightedAdapter> same{{activated, 1}, {of_hub("activated_head"), 2}};
  EXPECT_EQ(compose_adapters("sum", same).value()->config.alora_invocation_tokens, (std::vector<int64_t>{7, 8}));
  for (const char* second : {"activated_one_token", "activated_never"}) {
    const std::vector<WeightedAdapter> different{{activated, 1}, {of_hub(second), 1}};
    EXPECT_THAT(compose_adapters("sum", different).status().message(), HasSubstr("not activated by the same tokens"));
  }
}

TEST(Compose, RefusesWhatIsNoSumByName) {
  const auto plain = load("llama_mha", "r1");
  const auto refusal = [&](const std::string& name, double weight = 1) {
    const auto sum = compose_adapters("s", std::vector<WeightedAdapter>{{plain, 1}, {load("llama_mha", name), weight}});
    EXPECT_FALSE(sum.ok()) << name;
    return sum.status();
  };
  for (const auto& [name, why] : std::map<std::string, std::string>{{"dora_r4", "DoRA"},
                                                                    {"modules_to_save", "replaces"},
                                                                    {"final_norm", "replaces"},
                                                                    {"tokens", "trained token rows"}}) {
    const Status status = refusal(name);
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_THAT(status.message(), HasSubstr(name));
    EXPECT_THAT(status.message(), HasSubstr(why));
  }
  EXPECT_EQ(refusal("r8_attention", std::nan("")).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lk
