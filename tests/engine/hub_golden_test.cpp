// SPDX-License-Identifier: Apache-2.0
// Checkpoints and adapters as hubs and trainers write them, against transformers and PEFT in f32
// (tools/make_golden/hub.py): served as they are, converted to a plain adapter, and merged into the base.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <cmath>
#include <map>

#include "lk/engine/engine.h"
#include "lk/io/checkpoint.h"
#include "lk/lora_tools/merge.h"
#include "lk/lora_tools/save.h"
#include "lk/sched/scheduler.h"
#include "testing/backends.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

const std::string kHub = "tests/golden/hub/";
constexpr double kTolerance = 1e-4;

std::string text_of(const json::value& value, const char* key) {
  const json::value* found = value.as_object().if_contains(key);
  return found && found->is_string() ? std::string(found->as_string()) : "";
}

struct Hub {
  json::value root = json::parse(read_file(kHub + "manifest.json").value());
  std::shared_ptr<const TensorStore> arrays = TensorStore::open_file(kHub + "expected.safetensors").value();
  std::map<std::string, const json::value*> cases;

  Hub() {
    for (const json::value& c : root.at("cases").as_array()) cases[text_of(c, "name")] = &c;
  }
  static const Hub& get() {
    static const Hub hub;
    return hub;
  }
  std::vector<float> floats(const std::string& key) const {
    const TensorView* view = arrays->find(key);
    std::vector<float> values(static_cast<size_t>(view->num_elements()));
    view->copy_to(values.data());
    return values;
  }
};

struct Model {
  Status status;
  std::vector<std::string> warnings;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<UnifiedPool> pool;
  std::unique_ptr<Scheduler> scheduler;
  AdapterId adapter = kBaseModel;

  Model(const std::string& model_directory, const std::string& adapter_directory) {
    auto backend = testing::make_backend({.num_threads = 2});
    auto weights = load_weights(model_directory, DType::kF32, *backend);
    status = weights.status();
    if (!status.ok()) return;
    warnings = (*weights)->warnings;
    const int64_t page = Decoder(*weights, *backend, 1, 1).page_bytes();
    engine = Engine::create({.max_step_tokens = 16, .memory_bytes = 256 * page}, *weights, std::move(backend)).value();
    pool = std::make_unique<UnifiedPool>(engine->num_pages());
    scheduler = std::make_unique<Scheduler>(SchedulerOptions{.max_step_tokens = 16}, *pool, *engine);
    if (adapter_directory.empty()) return;
    auto loaded = load_adapter("adapter", adapter_directory, (*weights)->config, (*weights)->checkpoint.get());
    status = loaded.status();
    if (!status.ok()) return;
    warnings.insert(warnings.end(), (*loaded)->warnings.begin(), (*loaded)->warnings.end());
    adapter = engine->register_adapter(engine->prepare_adapter(*loaded).value());
  }

  Request request(const json::value& prompt) const {
    Request r{.id = 1, .adapter = adapter, .max_tokens = 1};
    for (const auto& id : prompt.at("token_ids").as_array()) r.prompt.push_back(static_cast<int32_t>(id.as_int64()));
    r.rope_length = static_cast<int64_t>(r.prompt.size());
    return r;
  }
  RequestEvent run(Request r) {
    RequestEvent all;
    EXPECT_TRUE(scheduler->submit(std::move(r)).ok());
    while (scheduler->has_work())
      for (RequestEvent& event : scheduler->step()) {
        if (event.has_token) all.token = std::move(event.token);
        if (!event.prompt_logprobs.empty()) all.prompt_logprobs = std::move(event.prompt_logprobs);
        if (!event.hidden_sum.empty()) all.hidden_sum = std::move(event.hidden_sum);
      }
    return all;
  }
};

void expect_close(const std::vector<double>& got, const std::vector<float>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], kTolerance * std::max(1.0, std::abs(double(want[i])))) << what << " [" << i << "]";
}

void expect_logprobs(Model& model, const json::value& prompt, const std::string& what) {
  Request r = model.request(prompt);
  r.sampling.temperature = 0;
  const std::vector<float> last = Hub::get().floats(text_of(prompt, "last_key"));
  r.sampling.num_logprobs = static_cast<int>(last.size());
  r.sampling.num_prompt_logprobs = 0;
  const RequestEvent event = model.run(std::move(r));
  std::vector<double> got(last.size(), 1e9);
  for (const auto& [token, logprob] : event.token.top) got[static_cast<size_t>(token)] = logprob;
  expect_close(got, last, what + " last");
  if (const std::string key = text_of(prompt, "prompt_key"); !key.empty()) {
    std::vector<double> scores;
    for (const TokenLogprob& entry : event.prompt_logprobs) scores.push_back(entry.logprob);
    expect_close(scores, Hub::get().floats(key), what + " prompt");
  }
}

void expect_embeddings(Model& model, const json::value& prompt, const std::string& what) {
  const std::pair<const char*, Pooling> kinds[] = {
      {"mean_key", Pooling::kMean}, {"last_key", Pooling::kLast}, {"cls_key", Pooling::kFirst}};
  for (const auto& [key, pooling] : kinds) {
    Request r = model.request(prompt);
    r.max_tokens = 0;
    r.pooling = pooling;
    std::vector<double> sum = model.run(std::move(r)).hidden_sum;
    double squares = 0;
    for (const double x : sum) squares += x * x;
    for (double& x : sum) x /= std::sqrt(squares);
    expect_close(sum, Hub::get().floats(text_of(prompt, key)), what + " " + key);
  }
}

void expect_values(const std::string& model_directory, const std::string& adapter_directory, const json::value& c,
                   const std::string& what) {
  Model model(model_directory, adapter_directory);
  ASSERT_TRUE(model.status.ok()) << what << ": " << model.status.message();
  for (const json::value& prompt : c.at("prompts").as_array()) {
    if (prompt.as_object().contains("mean_key"))
      expect_embeddings(model, prompt, what);
    else
      expect_logprobs(model, prompt, what);
  }
}

class HubGolden : public ::testing::TestWithParam<std::string> {
 protected:
  const json::value& c() const { return *Hub::get().cases.at(GetParam()); }
  std::string model() const { return kHub + text_of(c(), "model"); }
  std::string adapter() const {
    const std::string directory = text_of(c(), "adapter");
    return directory.empty() ? "" : kHub + directory;
  }
  bool is_refused() const { return !text_of(c(), "refused").empty(); }
  bool is_foreign() const { return c().as_object().contains("convert"); }
};

TEST_P(HubGolden, GivesTheValuesOfTheOracleOrIsRefused) {
  const Model loaded(model(), adapter());
  if (is_foreign()) {
    EXPECT_THAT(loaded.status.message(), HasSubstr("lorikeet adapter convert"));
    return;
  }
  if (is_refused()) {
    ASSERT_FALSE(loaded.status.ok()) << "must be refused: " << text_of(c(), "refused");
    EXPECT_THAT(loaded.status.message(), HasSubstr(text_of(c(), "refused")));
    return;
  }
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
  for (const json::value& warning : c().at("warns").as_array())
    EXPECT_THAT(loaded.warnings, ::testing::Contains(HasSubstr(std::string(warning.as_string()))));
  if (c().at("warns").as_array().empty() && adapter().empty()) {
    EXPECT_THAT(loaded.warnings, ::testing::IsEmpty());
  }
  expect_values(model(), adapter(), c(), GetParam());
}

// After the base and with what that left in the prefix cache.
TEST_P(HubGolden, GeneratesWhatTheOracleDoes) {
  if (is_refused() || !c().at("prompts").as_array()[0].as_object().contains("output")) GTEST_SKIP();
  Model model(this->model(), adapter());
  ASSERT_TRUE(model.status.ok()) << model.status.message();
  for (const json::value& prompt : c().at("prompts").as_array()) {
    Request r = model.request(prompt);
    r.sampling.temperature = 0;
    r.cache_salt = r.prompt.size();  // each prompt by itself
    const json::value* shares = c().as_object().if_contains("shares_base");
    if (shares) {
      Request base = r;
      base.adapter = kBaseModel;
      model.run(base);
    }
    std::vector<int32_t> output;
    for (const json::value& token : prompt.at("output").as_array()) output.push_back(token.to_number<int32_t>());
    r.max_tokens = std::ssize(output);
    std::vector<int32_t> got;
    int64_t cached = -1;
    ASSERT_TRUE(model.scheduler->submit(r).ok());
    while (model.scheduler->has_work())
      for (const RequestEvent& event : model.scheduler->step()) {
        if (event.started) cached = event.cached_tokens;
        if (event.has_token) got.push_back(event.token.token);
      }
    EXPECT_EQ(got, output) << GetParam();
    if (shares) {
      const json::value& at = prompt.at("activated_at");
      const int64_t before = at.is_null() ? std::ssize(r.prompt) - 1 : at.as_int64();
      EXPECT_EQ(cached, shares->as_bool() ? before / kPageTokens * kPageTokens : 0) << GetParam();
    }
  }
}

TEST_P(HubGolden, ConvertedAndMergedItIsTheSame) {
  if (is_refused() || adapter().empty()) GTEST_SKIP();
  const Checkpoint base = open_checkpoint(model()).value();
  testing::TempDir out;
  const auto converted = convert_adapter(adapter(), base.config, base.weights.get(), out.file("plain"));
  ASSERT_TRUE(converted.ok()) << converted.status().message();
  expect_values(model(), out.file("plain"), c(), GetParam() + " converted");
  const auto loaded =
      load_adapter("adapter", is_foreign() ? out.file("plain") : adapter(), base.config, base.weights.get()).value();
  const auto merged = merge_adapter(model(), *loaded, out.file("merged"), {.dtype = DType::kF32});
  if (const std::string why = text_of(c(), "unmergeable"); !why.empty()) {
    EXPECT_THAT(merged.status().message(), HasSubstr(why));
    return;
  }
  ASSERT_TRUE(merged.ok()) << merged.status().message();
  expect_values(out.file("merged"), "", c(), GetParam() + " merged");
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, c] : Hub::get().cases) all.push_back(name);
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, HubGolden, ::testing::ValuesIn(names()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lk
