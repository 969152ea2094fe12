// SPDX-License-Identifier: Apache-2.0
#include "lk/load/workload.h"

#include <gtest/gtest.h>

#include <set>

#include <boost/json.hpp>

namespace lk::load {
namespace {

namespace json = boost::json;

json::object body_of(const WorkloadOptions& options, int64_t index) {
  return json::parse(make_request(options, index, "m").body).as_object();
}

TEST(Workload, RandomTokensHaveTheLengthsAndTheSharedPrefix) {
  const WorkloadOptions options{.input = {20, 30}, .output = {5, 9}, .shared_prefix = 12, .vocab_size = 50};
  const json::array first = body_of(options, 0).at("prompt").as_array();
  std::set<size_t> lengths;
  std::set<int64_t> outputs;
  bool differs_after_prefix = false;
  for (int64_t i = 0; i < 300; ++i) {
    const json::object body = body_of(options, i);
    const json::array& ids = body.at("prompt").as_array();
    lengths.insert(ids.size());
    outputs.insert(body.at("max_tokens").as_int64());
    for (size_t k = 0; k < 12; ++k) EXPECT_EQ(ids[k], first[k]);
    differs_after_prefix |= ids[12] != first[12];
    for (const json::value& id : ids) EXPECT_LT(id.as_int64(), 50);
  }
  EXPECT_EQ(*lengths.begin(), 20u);
  EXPECT_EQ(*lengths.rbegin(), 30u);
  EXPECT_EQ(lengths.size(), 11u);
  EXPECT_EQ(outputs, (std::set<int64_t>{5, 6, 7, 8, 9}));
  EXPECT_TRUE(differs_after_prefix);
}

TEST(Workload, ARequestDependsOnSeedAndIndexOnly) {
  WorkloadOptions options;
  const std::string body = make_request(options, 7, "m").body;
  EXPECT_EQ(make_request(options, 7, "m").body, body);
  EXPECT_NE(make_request(options, 8, "m").body, body);
  options.seed = 2;
  EXPECT_NE(make_request(options, 7, "m").body, body);
}

TEST(Workload, BodiesHaveTheFieldsOfTheInterface) {
  const json::object completions = body_of({}, 0);
  EXPECT_EQ(completions.at("model"), "m");
  EXPECT_EQ(completions.at("ignore_eos"), true);
  EXPECT_EQ(completions.at("stream"), true);
  EXPECT_EQ(completions.at("stream_options").at("include_usage"), true);
  const WorkloadOptions options{.chat = true,
                                .stream = false,
                                .ignore_eos = false,
                                .input = {3, 3},
                                .extra = {{"temperature", 0.5}, {"top_k", 5}}};
  const json::object chat = body_of(options, 0);
  EXPECT_EQ(make_request(options, 0, "m").path, "/v1/chat/completions");
  const json::string& text = chat.at("messages").at(0).at("content").as_string();
  EXPECT_EQ(std::count(text.begin(), text.end(), ' '), 2);
  EXPECT_FALSE(chat.contains("stream_options"));
  EXPECT_FALSE(chat.contains("ignore_eos"));
  EXPECT_EQ(chat.at("temperature"), 0.5);
  EXPECT_EQ(chat.at("top_k"), 5);
}

TEST(Workload, PromptsOfAFileAreUsedInTurn) {
  WorkloadOptions options;
  options.prompts =
      parse_prompts("{\"prompt\":\"one\",\"max_tokens\":3}\n\n{\"prompt\":[1,2],\"adapter\":\"a\"}\r\n").value();
  ASSERT_EQ(options.prompts.size(), 2u);
  EXPECT_EQ(body_of(options, 2).at("prompt"), "one");
  EXPECT_EQ(make_request(options, 2, "m").max_tokens, 3);
  EXPECT_EQ(body_of(options, 1).at("prompt").as_array().size(), 2u);
  EXPECT_EQ(make_request(options, 1, "m").max_tokens, 64);
  EXPECT_EQ(options.prompts[1].adapter, "a");
  options.chat = true;
  EXPECT_EQ(body_of(options, 0).at("messages").at(0).at("content"), "one");
}

TEST(Workload, BadPromptFilesNameTheLine) {
  for (const char* bad : {"", "\n", "{}", "[]", "{\"prompt\":5}", "{\"prompt\":\"a\",\"messages\":[]}",
                          "{\"prompt\":\"a\",\"max_tokens\":0}", "{\"prompt\":\"a\",\"x\":1}", "{\"messages\":\"a\"}",
                          "{\"prompt\":\"a\",\"adapter\":1}"})
    EXPECT_FALSE(parse_prompts(bad).ok()) << bad;
  EXPECT_NE(parse_prompts("{\"prompt\":\"a\"}\n{").status().message().find("line 2"), std::string::npos);
}

TEST(LengthRange, IsANumberOrARange) {
  EXPECT_EQ(parse_length_range("12")->max, 12);
  EXPECT_EQ(parse_length_range("3:9")->min, 3);
  EXPECT_EQ(parse_length_range("3:9")->max, 9);
  for (const char* bad : {"", "0", "-1", "9:3", "3:", ":3", "3:4:5", "x", "1e3", "99999999999"})
    EXPECT_FALSE(parse_length_range(bad).ok()) << bad;
}

}  // namespace
}  // namespace lk::load
