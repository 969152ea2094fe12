// SPDX-License-Identifier: Apache-2.0
// The table of fields against those who read by it: the lines of a batch, a model's own defaults, the model's checks.
#include "lk/infer/request_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <map>
#include <set>
#include <string>

#include "lk/infer/generation_config.h"
#include "lk/infer/jsonl.h"
#include "lk/infer/text_model.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RequestFields, AFormHasANameOnce) {
  std::map<std::string, uint64_t, std::less<>> forms;
  for (const Field& field : kRequestFields) {
    uint64_t& seen = forms[std::string(field.name)];
    EXPECT_EQ(seen & field.forms, 0u) << field.name;
    seen |= field.forms;
    EXPECT_LE(field.min, field.max) << field.name;
    EXPECT_LE(field.low, field.high) << field.name;
  }
}

// Values at the ends of the field's range, and beyond them.
struct Ends {
  std::vector<boost::json::value> good, bad;
};
Ends ends_of(const Field& field) {
  Ends ends;
  if (field.kind == FieldKind::kNumber) {
    (field.above ? ends.bad : ends.good).emplace_back(field.low);
    ends.good.emplace_back(field.high);
    ends.bad.emplace_back(field.low - 0.001);
    ends.bad.emplace_back(field.high + 0.001);
  } else if (field.kind == FieldKind::kInteger || field.kind == FieldKind::kCount) {
    ends.good = {field.min, field.max};
    ends.bad.emplace_back(field.min - 1);
    if (field.max != kNoMaximum) ends.bad.emplace_back(field.max + 1);
  }
  return ends;
}

TEST(RequestFields, LinesOfABatchKeepTheRanges) {
  int num_ranges = 0;
  for (const Field& field : kRequestFields) {
    if (!(field.forms & kBatchForm)) continue;
    const auto status = [&](const boost::json::value& value) {
      return parse_jsonl_request(boost::json::serialize(boost::json::object{{field.name, value}}), {}).status();
    };
    const Ends ends = ends_of(field);
    for (const auto& good : ends.good) EXPECT_TRUE(status(good).ok()) << field.name << status(good).message();
    for (const auto& bad : ends.bad)
      EXPECT_THAT(status(bad).message(), HasSubstr(fmt::format("field \"{}\" must be", field.name)));
    num_ranges += !ends.good.empty();
    // Each field is read, and none takes anything.
    if (field.kind != FieldKind::kIgnored) {
      EXPECT_THAT(status(boost::json::array{boost::json::array{}}).message(), HasSubstr(field.name));
    }
  }
  EXPECT_GE(num_ranges, 11);
}

TEST(RequestFields, WhatComesWithoutJsonHasTheSameRanges) {
  const std::pair<const Field&, double SamplingParams::*> numbers[] = {
      {sampling_field("temperature"), &SamplingParams::temperature},
      {sampling_field("top_p"), &SamplingParams::top_p},
      {sampling_field("min_p"), &SamplingParams::min_p},
      {sampling_field("repetition_penalty"), &SamplingParams::repetition_penalty},
      {sampling_field("presence_penalty"), &SamplingParams::presence_penalty},
      {sampling_field("frequency_penalty"), &SamplingParams::frequency_penalty}};
  for (const auto& [field, member] : numbers) {
    const auto status = [&, member = member](const boost::json::value& value) {
      SamplingParams params;
      params.*member = value.to_number<double>();
      return validate_sampling(params, 10);
    };
    const Ends ends = ends_of(field);
    for (const auto& good : ends.good) EXPECT_TRUE(status(good).ok()) << field.name;
    for (const auto& bad : ends.bad) EXPECT_THAT(status(bad).message(), HasSubstr(field.name)) << bad;
  }
  EXPECT_FALSE(validate_sampling({.top_k = -1}, 10).ok());
  EXPECT_FALSE(validate_sampling({.num_prompt_logprobs = 21}, 10).ok());
  EXPECT_FALSE(validate_sampling({.temperature = std::nan("")}, 10).ok());
  EXPECT_FALSE(validate_sampling({.logit_bias = {{1, std::nanf("")}}}, 10).ok());
}

TEST(GenerationDefaults, ReadsAndDefaults) {
  testing::TempDir dir;
  EXPECT_FALSE(load_generation_defaults(dir.path())->temperature.has_value());
  dir.write("generation_config.json",
            R"({"temperature":0.6,"top_k":50,"min_p":0.1,"top_p":null,"do_sample":true,"eos_token_id":[1,2]})");
  const auto defaults = load_generation_defaults(dir.path());
  ASSERT_TRUE(defaults.ok());
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_k, 50);
  EXPECT_EQ(defaults->min_p, 0.1);
  EXPECT_FALSE(defaults->top_p.has_value());
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(1, 2));
  dir.write("generation_config.json", R"({"top_k":-1,"eos_token_id":-1})");
  EXPECT_EQ(load_generation_defaults(dir.path())->top_k, 0);
  EXPECT_TRUE(load_generation_defaults(dir.path())->eos_token_ids.empty());
}

TEST(GenerationDefaults, IsAppliedInFullOrNamed) {
  testing::TempDir dir;
  const auto load = [&](const char* text) {
    dir.write("generation_config.json", text);
    return load_generation_defaults(dir.path()).value();
  };
  EXPECT_EQ(load(R"({"do_sample":false,"temperature":0.7,"top_p":0.8})").temperature, 0) << "greedy";
  EXPECT_EQ(load(R"({"do_sample":true,"temperature":0.7})").temperature, 0.7);
  EXPECT_FALSE(load(R"({"top_p":0.8})").temperature.has_value()) << "nobody said greedy";
  const GenerationDefaults all = load(R"({"max_new_tokens":7,"min_new_tokens":2,"presence_penalty":1.5,
      "frequency_penalty":-0.5,"repetition_penalty":1.1,"stop_strings":["END","Q:"]})");
  EXPECT_EQ(all.max_tokens, 7);
  EXPECT_EQ(all.min_tokens, 2);
  EXPECT_EQ(all.presence_penalty, 1.5);
  EXPECT_EQ(all.frequency_penalty, -0.5);
  EXPECT_THAT(all.stop, ElementsAre("END", "Q:"));
  EXPECT_EQ(load(R"({"stop_strings":"END"})").stop.size(), 1U);
  EXPECT_TRUE(all.warnings.empty());
  EXPECT_THAT(load(R"({"num_beams":4,"no_repeat_ngram_size":0,"typical_p":1.0,"bad_words_ids":[[1]],
                       "guidance_scale":null,"watermarking_config":{"a":1},"pad_token_id":3})")
                  .warnings,
              ElementsAre(::testing::EndsWith(
                  "generation_config.json is not applied: num_beams, bad_words_ids, watermarking_config")));
  dir.write("generation_config.json", R"({"max_new_tokens":2,"min_new_tokens":3})");
  EXPECT_THAT(load_generation_defaults(dir.path()).status().message(), HasSubstr("min_new_tokens"));
  // An adapter's own values come before the base's, key by key.
  const GenerationDefaults both = load(R"({"top_k":5,"eos_token_id":9})").over(all);
  EXPECT_EQ(both.top_k, 5);
  EXPECT_EQ(both.max_tokens, 7);
  EXPECT_THAT(both.eos_token_ids, ElementsAre(9));
}

// A request could not ask for it, so a silent one could not be answered: the model's files are wrong, not the request.
TEST(GenerationDefaults, WhatNoRequestMayAskForIsRefusedByTheFilesName) {
  testing::TempDir dir;
  int num_ranges = 0;
  for (const Field& field : kRequestFields) {
    if (!(field.forms & kGenerationConfigForm)) continue;
    for (const auto& bad : ends_of(field).bad) {
      dir.write("generation_config.json", boost::json::serialize(boost::json::object{{field.name, bad}}));
      EXPECT_THAT(load_generation_defaults(dir.path()).status().message(),
                  HasSubstr(fmt::format("generation_config.json: \"{}\" must be", field.name)));
      ++num_ranges;
    }
  }
  EXPECT_GE(num_ranges, 15);
  dir.write("generation_config.json", R"({"temperature":"hot"})");
  EXPECT_THAT(load_generation_defaults(dir.path()).status().message(), HasSubstr("\"temperature\" must be a number"));
}

}  // namespace
}  // namespace lk
