// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/cost_model.h"

#include <gtest/gtest.h>

#include <limits>

#include "lk/base/rng.h"
#include "lk/sim/cost_fit.h"

namespace lk::sim {
namespace {

// Round numbers: reading the weights takes 100 us, a row of products 1 us.
CostModel round_model() {
  return {.name = "round",
          .weight_bytes = 1e5,
          .head_bytes = 1e4,
          .flops_per_token = 1e3,
          .head_flops_per_token = 100,
          .memory_bytes_s = 1e9,
          .flops_s = 1e9,
          .step_us = 7,
          .token_us = 0.5,
          .sequence_us = 2,
          .kv_bytes_per_token = 10,
          .attention_bytes_s = 1e9,
          .attention_flops_per_pair = 1,
          .adapter_bytes_per_rank = 100,
          .adapter_flops_per_rank = 10,
          .adapter_flops_s = 1e9,
          .adapter_step_us = 3,
          .segment_us = 4,
          .load_us = 5,
          .load_bytes_s = 1e8,
          .disk_bytes_s = 1e7,
          .pool_bytes = 1e5};
}

TEST(CostModel, DecodeReadsTheWeightsOnce) {
  // 7 fixed + 2 rows + 4 sequences + 100 weights + 10 head + 2 * 100 positions * 10 bytes.
  EXPECT_NEAR(round_model().step_us_of({.num_tokens = 2, .num_samples = 2, .sequences = {{1, 100}, {1, 100}}}),
              7 + 1 + 4 + 100 + 10 + 2, 1e-9);
}

TEST(CostModel, PrefillIsBoundByProducts) {
  // 1,000 rows: 1,000 us of products; attention pairs 1000 * 1001 / 2 at 1 flop.
  EXPECT_NEAR(round_model().step_us_of({.num_tokens = 1000, .sequences = {{1000, 1000}}}), 7 + 500 + 2 + 1000 + 500.5,
              1e-6);
}

TEST(CostModel, EachSegmentCostsItsWeightsOrItsRows) {
  const CostModel model = round_model();
  const StepShape base{.num_tokens = 1, .sequences = {{1, 1}}};
  StepShape shape = base;
  shape.segments = {{8, 1}, {0, 5}, {16, 100}};
  // Rank 8, one row: 800 bytes = 0.8 us; rank 16, 100 rows: 16,000 flops = 16 us. Base rows are free.
  EXPECT_NEAR(model.step_us_of(shape) - model.step_us_of(base), 3 + 2 * 4 + 0.8 + 16, 1e-9);
}

TEST(CostModel, LoadsFromDiskPassTheHost) {
  EXPECT_NEAR(round_model().load_us_of(1000), 5 + 10, 1e-9);
  EXPECT_NEAR(round_model().read_us_of(1000), 100, 1e-9);
  EXPECT_EQ(round_model().pages_of_adapter(4), 3);  // 400 bytes in pages of 160
}

TEST(CostModel, JsonKeepsEveryField) {
  const CostModel model = round_model();
  const Result<CostModel> again = parse_cost_model(to_json(model));
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(again->name, "round");
  for (const CostField& field : cost_fields())
    EXPECT_DOUBLE_EQ(model.*field.member, (*again).*field.member) << field.name;
}

TEST(CostModel, MergedRowsAreASecondProductOfTheirPartOfTheLinears) {
  CostModel model = round_model();
  // Reading the weights takes 100 us whether two rows are computed or one; without segments the rest of the step is the
  // same.
  const StepShape plain{.num_tokens = 2, .sequences = {{1, 100}, {1, 100}}};
  StepShape mixed = plain;
  mixed.merged_rows = 1;
  EXPECT_NEAR(model.step_us_of(mixed) - model.step_us_of(plain), 100, 1e-9);
  model.merged_bytes = model.weight_bytes / 4;
  EXPECT_NEAR(model.step_us_of(mixed) - model.step_us_of(plain), 25, 1e-9);
  mixed.merged_rows = 2;
  EXPECT_NEAR(model.step_us_of(mixed), model.step_us_of(plain), 1e-9) << "one product again";
  // A quarter of W read and as much written, and eight multiply-adds for each of its weights.
  EXPECT_NEAR(model.merge_us_of(8), (2 * 100 + 8 * 1e6 * model.flops_per_token / model.flops_s) / 4, 1e-9);
  const StepShape shape{.num_tokens = 2,
                        .sequences = {{1, 100}, {1, 100}},
                        .segments = {{.rank = 8, .rows = 1}, {.rank = 16, .rows = 1}}};
  EXPECT_NEAR(model.adapter_us_of(shape), model.step_us_of(shape) - model.step_us_of(plain), 1e-9);
}

TEST(CostModel, FilesWithoutTheFieldsOfMergingAreValid) {
  std::string text = to_json(round_model());
  const size_t begin = text.find(",\n  \"merged_bytes\"");
  ASSERT_NE(begin, std::string::npos);
  text.erase(begin, text.find('\n', begin + 2) - begin - 1);
  const Result<CostModel> model = parse_cost_model(text);
  ASSERT_TRUE(model.ok()) << model.status().message() << text;
  EXPECT_EQ(model->merged_share(), 1);
}

TEST(CostModel, BadJsonSaysWhatIsWrong) {
  const std::string good = to_json(round_model());
  const auto error = [](const std::string& text) { return parse_cost_model(text).status().message(); };
  EXPECT_NE(error("[]").find("must be a JSON object"), std::string::npos);
  EXPECT_NE(error("{\"speed\": 1}").find("unknown field \"speed\""), std::string::npos);
  EXPECT_NE(error("{\"name\": \"x\"}").find("\"weight_bytes\" is missing"), std::string::npos);
  std::string zero = good;
  zero.replace(zero.find("\"flops_s\": 1e+09"), 16, "\"flops_s\": 0");
  EXPECT_NE(error(zero).find("flops_s must be positive"), std::string::npos);
}

TEST(CostModel, BuiltInMachinesAreSound) {
  for (const std::string& name : builtin_cost_models()) {
    const Result<CostModel> model = find_cost_model(name);
    ASSERT_TRUE(model.ok());
    EXPECT_TRUE(validate(*model).ok()) << name;
    // An adapter of rank r on q, k, v, o takes as many bytes as 4 r tokens of KV (S-LoRA §5.1).
    EXPECT_DOUBLE_EQ(model->adapter_bytes(8), 32 * model->kv_bytes_per_token) << name;
  }
  EXPECT_EQ(find_cost_model("no-such-machine").status().code(), StatusCode::kNotFound);
}

std::vector<StepSample> samples_of(const CostModel& model, uint64_t seed, double noise) {
  Rng rng(seed);
  std::vector<StepSample> samples;
  for (int i = 0; i < 200; ++i) {
    StepShape shape;
    for (uint64_t n = 1 + rng.below(32); n > 0; --n) {
      const auto rows = static_cast<int64_t>(rng.below(4) == 0 ? 1 + rng.below(300) : 1),
                 context = rows + static_cast<int64_t>(rng.below(1000));
      shape.sequences.push_back({rows, context});
      shape.num_tokens += rows;
      ++shape.num_samples;
      if (rng.below(2)) shape.segments.push_back({rng.below(2) ? 8 : 64, rows});
    }
    samples.push_back({shape, model.step_us_of(shape) * (1 + noise * (rng.uniform() - 0.5))});
  }
  return samples;
}

TEST(CostFit, FindsAModelThatPredictsUnseenSteps) {
  CostModel truth = *find_cost_model("a10g-7b");
  truth.segment_us = 40;
  truth.token_us = 3;
  CostModel start = truth;
  start.memory_bytes_s *= 2;
  start.flops_s /= 3;
  start.step_us = start.token_us = start.sequence_us = start.segment_us = start.adapter_step_us = 0;
  const CostModel fitted = fit_cost_model(start, samples_of(truth, 1, 0.05));
  EXPECT_GT(fit_error(start, samples_of(truth, 2, 0)).median, 0.2);
  EXPECT_LT(fit_error(fitted, samples_of(truth, 2, 0)).median, 0.03);
  EXPECT_NEAR(fitted.memory_bytes_s / truth.memory_bytes_s, 1, 0.2);
  EXPECT_EQ(fitted.weight_bytes, truth.weight_bytes);
}

}  // namespace
}  // namespace lk::sim
