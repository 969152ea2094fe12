// SPDX-License-Identifier: Apache-2.0
// Numerics version 1: what every base and adapter of the golden fixtures answers, bit for bit, on every instruction
// set. tests/golden/recorded.json holds a digest of tokens and log-probabilities per case. A change of bits is a new
// numerics version (docs/design/numerics.md): never an accident. To write the file anew: LK_RECORD=1 engine_tests
// --gtest_filter='Recorded.*' (only on a machine that has all instruction sets, and with an entry in the CHANGELOG).
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "engine/engine_harness.h"
#include "lk/base/rng.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {

using testing::EngineHarness;
using testing::kGoldenDir;
using testing::Output;

constexpr const char* kRecorded = "tests/golden/recorded.json";

// model -> its adapters that can be served; sorted.
std::map<std::string, std::vector<std::string>> fixtures() {
  std::map<std::string, std::vector<std::string>> models;
  for (const auto& entry : std::filesystem::directory_iterator(kGoldenDir + "models"))
    models[entry.path().filename().string()];
  for (const auto& entry : std::filesystem::directory_iterator(kGoldenDir + "adapters")) {
    const std::string name = entry.path().filename().string();
    const size_t cut = name.find("__");
    models.at(name.substr(0, cut)).push_back(name.substr(cut + 2));
  }
  for (auto& [model, adapters] : models) {
    std::sort(adapters.begin(), adapters.end());
    auto backend = testing::make_backend({.num_threads = 1});
    const auto weights = load_weights(kGoldenDir + "models/" + model, DType::kF32, *backend).value();
    std::erase_if(adapters, [&](const std::string& name) {
      return !load_adapter(name, kGoldenDir + "adapters/" + model + "__" + name, weights->config,
                           weights->checkpoint.get())
                  .ok();
    });
  }
  return models;
}

// Greedy, top-k, top-p with every penalty, min-p; prompts within a page and over several.
std::vector<Request> requests(AdapterId adapter, const ModelConfig& config) {
  std::vector<Request> out;
  for (const int64_t length : {5, 37, 19, 50}) {
    Request request{.id = static_cast<RequestId>(out.size()), .adapter = adapter, .max_tokens = 20};
    Rng prompt(static_cast<uint64_t>(length));
    for (int64_t i = 0; i < length; ++i)
      request.prompt.push_back(static_cast<int32_t>(prompt.below(static_cast<uint64_t>(config.vocab_size))));
    request.sampling.seed = static_cast<uint64_t>(1000 + length);
    request.sampling.num_logprobs = 0;
    request.rope_length = length + request.max_tokens;
    out.push_back(std::move(request));
  }
  out[0].sampling.temperature = 0;
  out[1].sampling.top_k = 7;
  out[1].sampling.num_prompt_logprobs = 0;
  SamplingParams& chat = out[2].sampling;
  chat.temperature = 0.7, chat.top_p = 0.9, chat.repetition_penalty = 1.1, chat.presence_penalty = 0.3;
  chat.frequency_penalty = 0.2, chat.logit_bias = {{1, 2.0f}, {3, -1.5f}};
  out[3].sampling.temperature = 1.2, out[3].sampling.min_p = 0.05;
  return out;
}

std::string digest(EngineHarness& harness, AdapterId adapter) {
  Sha256 sum;
  for (const Request& request : requests(adapter, harness.engine->weights().config)) {
    std::map<RequestId, Output> outputs;
    EXPECT_TRUE(harness.scheduler->submit(request).ok());
    while (harness.scheduler->has_work()) harness.take_events(outputs);
    const Output& output = outputs[request.id];
    EXPECT_EQ(std::ssize(output.tokens), request.max_tokens);
    sum.update(output.tokens.data(), output.tokens.size() * sizeof(int32_t));
    sum.update(output.logprob_bits.data(), output.logprob_bits.size() * sizeof(uint32_t));
  }
  return to_hex(sum.finish()).substr(0, 16);
}

// Runs requests of the adapter until steps run on its merged weights. False when it cannot be merged.
bool merge(EngineHarness& harness, AdapterId adapter) {
  if (!harness.engine->merge_footprint(adapter).ok()) return false;
  const auto& stats = harness.merging->stats();
  const int64_t before = stats.num_merged_steps;
  std::map<RequestId, Output> ignored;
  for (RequestId id = 100; stats.num_merged_steps == before; ++id) {
    Request request = requests(adapter, harness.engine->weights().config)[0];
    request.id = id;
    EXPECT_TRUE(harness.scheduler->submit(request).ok());
    while (harness.scheduler->has_work()) harness.take_events(ignored);
    if (stats.num_refused > 0) return false;  // rounding would lose too much
  }
  return true;
}

std::map<std::string, std::string> record(CpuIsa isa, DType act) {
  std::map<std::string, std::string> digests;
  const auto key = [&](const std::string& rest) {
    return fmt::format("{} {} {}", to_string(isa), to_string(act), rest);
  };
  const SchedulerOptions options{.max_step_tokens = 32, .prefix_cache = false};
  for (const auto& [model, adapters] : fixtures()) {
    EngineHarness all({model, adapters, act, {}, isa}, options, 4096, 2);
    digests[key(model)] = digest(all, kBaseModel);
    for (size_t i = 0; i < adapters.size(); ++i) {
      digests[key(model + " " + adapters[i])] = digest(all, all.ids[i]);
      EngineHarness one({model, {adapters[i]}, act, {0}, isa}, options, 4096, 2);
      if (merge(one, one.ids[0])) digests[key(model + " " + adapters[i] + " merged")] = digest(one, one.ids[0]);
    }
  }
  return digests;
}

class Recorded : public ::testing::TestWithParam<std::tuple<CpuIsa, DType>> {};

TEST_P(Recorded, EveryBitIsWhatItWas) {
  const auto [isa, act] = GetParam();
  const std::map<std::string, std::string> now = record(isa, act);
  boost::json::object recorded;
  if (const auto text = read_file(kRecorded); text.ok()) recorded = boost::json::parse(*text).as_object();
  if (std::getenv("LK_RECORD")) {
    std::map<std::string, std::string> sorted(now);
    for (const auto& [name, value] : recorded) sorted.emplace(name, value.as_string());
    std::ofstream out(kRecorded);
    for (bool first = true; const auto& [name, value] : sorted)
      out << (std::exchange(first, false) ? "{" : ",\n ") << fmt::format("\"{}\": \"{}\"", name, value);
    out << "}\n";
    GTEST_SKIP() << "recorded " << now.size() << " cases";
  }
  const std::string prefix = fmt::format("{} {} ", to_string(isa), to_string(act));
  int64_t expected = 0;
  for (const auto& [name, value] : recorded) {
    if (!name.starts_with(prefix)) continue;
    ++expected;
    const auto it = now.find(name);
    ASSERT_NE(it, now.end()) << name << " is gone";
    EXPECT_EQ(it->second, value.as_string()) << name << " gives other bits than were recorded";
  }
  EXPECT_EQ(expected, std::ssize(now)) << "cases without a record";
}

INSTANTIATE_TEST_SUITE_P(, Recorded,
                         ::testing::Combine(::testing::ValuesIn(supported_cpu_isas()),
                                            ::testing::Values(DType::kBF16, DType::kF32)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", to_string(std::get<0>(info.param)),
                                              to_string(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace lk
