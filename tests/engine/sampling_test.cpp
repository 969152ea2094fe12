// SPDX-License-Identifier: Apache-2.0
// Requests that cannot go on, in a batch with others: logits that are not finite, constraints that allow or accept
// nothing. They end alone, with an error that says why, and everybody else's bits are as without them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <set>

#include "lk/engine/engine.h"
#include "lk/sched/scheduler.h"
#include "lora/adapter_maker.h"
#include "testing/backends.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::TensorBag;

// Allows all tokens until `last` were made, then none; refuses `refused`.
struct Limit final : TokenConstraint {
  Status allowed(std::span<uint64_t> words) override {
    if (made == last) return failed_precondition("no more than {}", last);
    std::fill(words.begin(), words.end(), ~uint64_t{0});
    return Status();
  }
  Status accept(int32_t) override { return made++ == refused ? internal_error("refused") : Status(); }
  int made = 0, last = -1, refused = -1;
};

struct Outcome {
  std::vector<uint32_t> bits;  // tokens and log-probabilities, of the prompt too
  FinishReason finish = FinishReason::kNone;
  Status error;
};

class SamplingTest : public ::testing::Test {
 protected:
  static constexpr AdapterId kGood = 0, kBroken = 1;

  SamplingTest() {
    const std::string config_json = testing::tiny_config_json();
    testing::write_base(base_dir_, testing::tiny_config(), config_json);
    auto backend = testing::make_backend({.num_threads = 2});
    auto weights = load_weights(base_dir_.path(), DType::kF32, *backend).value();
    engine_ = Engine::create({.max_step_tokens = 64, .memory_bytes = 1 << 20}, weights, std::move(backend)).value();
    pool_ = std::make_unique<UnifiedPool>(engine_->num_pages());
    scheduler_ = std::make_unique<Scheduler>(SchedulerOptions{.max_step_tokens = 64}, *pool_, *engine_);
    add_adapter("good", good_dir_, 0.3f);
    // Finite as it stands, scaled, and for any normed input, as loading requires; gate times up is not.
    add_adapter("broken", broken_dir_, 3e18f);
  }
  void add_adapter(const std::string& name, const TempDir& dir, float size) {
    const int64_t rank = 2, in = engine_->weights().config.hidden_dim, out = engine_->weights().config.intermediate_dim;
    std::vector<float> b(static_cast<size_t>(out * rank));
    for (size_t i = 0; i < b.size(); ++i)
      b[i] = i / rank % 2 == 0 ? size : -size;  // whatever the sign of A x, gates open
    TensorBag bag;
    for (int layer = 0; layer < 2; ++layer) {
      for (const char* proj : {"gate_proj", "up_proj"}) {
        const std::string path = fmt::format("base_model.model.model.layers.{}.mlp.{}", layer, proj);
        bag.set(path + ".lora_A.weight", {rank, in}, std::vector<float>(static_cast<size_t>(rank * in), size));
        bag.set(path + ".lora_B.weight", {out, rank}, b);
      }
    }
    dir.write("adapter_config.json",
              R"({"peft_type":"LORA","r":2,"lora_alpha":2,"target_modules":["gate_proj","up_proj"]})");
    bag.write(dir.file("adapter_model.safetensors"));
    auto adapter = load_adapter(name, dir.path(), engine_->weights().config, nullptr);
    ASSERT_TRUE(adapter.ok()) << adapter.status().message();
    engine_->register_adapter(engine_->prepare_adapter(*adapter).value());
  }
  static Request make(RequestId id, AdapterId adapter) {
    Request request{.id = id, .adapter = adapter, .max_tokens = 12};
    for (int32_t i = 0; i < 20; ++i) request.prompt.push_back((static_cast<int32_t>(id) * 7 + i * 3) % 40);
    request.sampling = {.temperature = id % 2 == 0 ? 0.0 : 0.9, .top_p = 0.9, .seed = 5, .num_logprobs = 2};
    return request;
  }
  std::map<RequestId, Outcome> run(const std::vector<Request>& requests) {
    for (const Request& request : requests) EXPECT_TRUE(scheduler_->submit(request).ok());
    std::map<RequestId, Outcome> outcomes;
    while (scheduler_->has_work()) {
      for (const RequestEvent& event : scheduler_->step()) {
        Outcome& outcome = outcomes[event.id];
        EXPECT_EQ(outcome.finish, FinishReason::kNone) << "nothing comes after the end";
        const auto add = [&](const TokenLogprob& entry) {
          EXPECT_TRUE(std::isfinite(entry.logprob));
          outcome.bits.push_back(static_cast<uint32_t>(entry.token));
          outcome.bits.push_back(std::bit_cast<uint32_t>(entry.logprob));
        };
        for (const TokenLogprob& entry : event.prompt_logprobs) add(entry);
        if (event.has_token) add(event.token);
        outcome.finish = event.finish;
        outcome.error = event.error;
      }
      pool_->check_integrity();
    }
    return outcomes;
  }
  void expect_untouched(const std::vector<Request>& others, std::vector<Request> failing) {
    const std::map<RequestId, Outcome> want = run(others);
    pool_->evict_all();
    failing.insert(failing.end(), others.begin(), others.end());
    std::map<RequestId, Outcome> got = run(failing);
    for (const Request& request : others) {
      EXPECT_EQ(got[request.id].bits, want.at(request.id).bits) << request.id;
      EXPECT_EQ(got[request.id].finish, FinishReason::kLength);
    }
    failed_ = std::move(got);
  }

  TempDir base_dir_, good_dir_, broken_dir_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<UnifiedPool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, Outcome> failed_;
};

TEST_F(SamplingTest, OverflowingAdapterEndsItsRequestsAlone) {
  Request scored = make(12, kBroken);
  scored.sampling.num_prompt_logprobs = 1;
  Request only_scored = scored;
  only_scored.id = 13;
  only_scored.max_tokens = 0;
  Request others_scored = make(3, kGood);
  others_scored.sampling.num_prompt_logprobs = 1;
  expect_untouched({make(1, kBaseModel), make(2, kGood), others_scored},
                   {make(10, kBroken), make(11, kBroken), scored, only_scored});
  for (RequestId id = 10; id < 14; ++id) {
    EXPECT_EQ(failed_[id].finish, FinishReason::kError) << id;
    EXPECT_EQ(failed_[id].error.code(), StatusCode::kInternal);
    EXPECT_THAT(failed_[id].error.message(), HasSubstr("adapter broken"));
    EXPECT_THAT(failed_[id].error.message(), HasSubstr("not finite"));
    EXPECT_TRUE(failed_[id].bits.empty()) << "no token, no log-probability";
  }
  EXPECT_EQ(scheduler_->stats().num_sampling_failures, 4);
}

TEST_F(SamplingTest, ConstraintThatAllowsOrAcceptsNothingEndsItsRequestAlone) {
  const auto limited = [](RequestId id, int last, int refused) {
    Request request = make(id, kGood);
    auto limit = std::make_shared<Limit>();
    limit->last = last;
    limit->refused = refused;
    request.constraint = limit;
    return request;
  };
  expect_untouched({make(1, kBaseModel), make(2, kGood)},
                   {limited(10, 0, -1), limited(11, 3, -1), limited(12, -1, 2), limited(13, -1, -1)});
  EXPECT_EQ(failed_[10].finish, FinishReason::kError);
  EXPECT_TRUE(failed_[10].bits.empty());
  EXPECT_EQ(failed_[11].finish, FinishReason::kError);
  EXPECT_EQ(failed_[11].error.message(), "no more than 3");
  EXPECT_EQ(failed_[11].bits.size(), 6U) << "three tokens and their log-probabilities came before";
  EXPECT_EQ(failed_[12].finish, FinishReason::kError);
  EXPECT_EQ(failed_[12].error.message(), "refused");
  EXPECT_EQ(failed_[12].bits.size(), 4U) << "the refused token is not given out";
  EXPECT_EQ(failed_[13].finish, FinishReason::kLength);
  EXPECT_EQ(scheduler_->stats().num_sampling_failures, 3);
}

// Each token counts from the step after it was made.
TEST_F(SamplingTest, PenaltiesFollowTheTokensSoFar) {
  Request once = make(4, kBaseModel);
  once.sampling.presence_penalty = 1000;
  std::map<RequestId, Outcome> outcomes = run({make(2, kBaseModel), once});
  std::set<uint32_t> tokens;
  for (size_t i = 0; i < outcomes[4].bits.size(); i += 2) tokens.insert(outcomes[4].bits[i]);
  EXPECT_EQ(tokens.size(), 12U) << "no token twice";
}

}  // namespace
}  // namespace lk
