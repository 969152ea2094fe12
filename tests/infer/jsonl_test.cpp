// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/jsonl.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <cmath>

namespace lk {
namespace {

TEST(Jsonl, ReadsEveryField) {
  const auto parsed = parse_jsonl_request(
      R"({"id": "a", "adapter": "sql", "prompt": "p", "max_tokens": 7, "output_so_far": [4, 5], "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1,
          "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": -0.3, "logit_bias": {"5": -100}, "seed": 18446744073709551615,
          "stop": "x", "stop_token_ids": [2], "logprobs": 4, "prompt_logprobs": true, "ignore_eos": true, "skip_special_tokens": false,
          "add_special_tokens": false, "expected": "y"})",
      {});
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const TextRequest& r = parsed->request;
  EXPECT_EQ(parsed->id.as_string(), "a");
  EXPECT_EQ(r.adapter, "sql");
  EXPECT_EQ(r.max_tokens, 7);
  EXPECT_EQ(r.output_so_far, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(r.sampling.temperature, 0.5);
  EXPECT_EQ(r.sampling.top_k, 3);
  EXPECT_EQ(r.sampling.frequency_penalty, -0.3);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.0f}}));
  EXPECT_EQ(r.sampling.seed, 18446744073709551615ull);
  EXPECT_EQ(r.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(r.sampling.num_logprobs, 4);
  EXPECT_EQ(r.sampling.num_prompt_logprobs, 0);
  EXPECT_TRUE(r.ignore_eos);
  EXPECT_FALSE(r.skip_special_tokens);
  EXPECT_EQ(parsed->expected, "y");
}

TEST(Jsonl, NamesTheFieldThatIsWrong) {
  const auto message = [](std::string_view line) { return parse_jsonl_request(line, {}).status().message(); };
  EXPECT_EQ(message(R"({"prompt": "a", "tempreature": 1})"), "unknown field \"tempreature\"");
  EXPECT_EQ(message(R"({"prompt": 3})"), "field \"prompt\" must be a string, got 3");
  EXPECT_EQ(message(R"({"max_tokens": 1.5})"), "field \"max_tokens\" must be an integer in range, got 1.5E0");
  EXPECT_NE(message(R"({"token_ids": [1, 99999999999]})").find("token_ids"), std::string::npos);
  EXPECT_NE(message(R"({"seed": -1})").find("seed"), std::string::npos);
  EXPECT_NE(message(R"([1])").find("JSON object"), std::string::npos);
  EXPECT_NE(message("{").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message(std::string(100, '[')).find("not valid JSON"), std::string::npos);
}

TEST(Jsonl, ResultsAreOneLineAndEscaped) {
  const Completion completion{
      .text = "a\n\"b\"", .token_ids = {1, 2}, .finish = FinishReason::kStop, .prompt_tokens = 3};
  const std::string line = format_jsonl_result(7, "", completion, "a\n\"b\"  ");
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto value = boost::json::parse(line);
  EXPECT_EQ(value.at("adapter").as_string(), "base");
  EXPECT_EQ(value.at("text").as_string(), "a\n\"b\"");
  EXPECT_TRUE(value.at("match").as_bool());
  EXPECT_EQ(value.at("completion_tokens").as_int64(), 2);
}

TEST(Jsonl, NumbersThatJsonLacksAreNull) {
  Completion completion{.text = "a", .token_ids = {1}, .finish = FinishReason::kStop};
  completion.logprobs = {{.token = 1, .logprob = -INFINITY, .rank = 1, .top = {{1, std::nanf("")}}}};
  const auto value = boost::json::parse(format_jsonl_result(1, "", completion));
  EXPECT_TRUE(value.at("logprobs").at(0).at("logprob").is_null());
  EXPECT_TRUE(value.at("logprobs").at(0).at("top").at(0).at("logprob").is_null());
}

}  // namespace
}  // namespace lk
