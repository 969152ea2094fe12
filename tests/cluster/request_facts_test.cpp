// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/request_facts.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

TEST(RequestFactsTest, FindsWhatRoutersNeed) {
  const auto facts = read_request_facts(
      R"( {"messages":[{"role":"user","content":"model\": \"x\", {[ \\"}], "model" : "sql" , "stream":true,"n":3,)"
      R"("max_completion_tokens":77, "nested":{"model":"no","stream":false}} )");
  ASSERT_TRUE(facts);
  EXPECT_EQ(facts->model, "sql");
  EXPECT_TRUE(facts->stream);
  EXPECT_EQ(facts->n, 3);
  EXPECT_EQ(facts->max_completion_tokens, 77);
  EXPECT_EQ(read_request_facts(R"({"model":"a\u0062\"c"})")->model, "ab\"c");
  EXPECT_EQ(read_request_facts(R"({"mod\u0065l":"x"})")->model, "x");
  EXPECT_EQ(read_request_facts(R"({"model":"a","model":"b","stream":"true"})")->model, "a");
  EXPECT_FALSE(read_request_facts(R"({"model":7})")->stream);
  EXPECT_EQ(read_request_facts("{}")->model, "");
  EXPECT_EQ(read_request_facts(R"({"n":-1e9,"stream":null})")->n, -1'000'000'000);
  EXPECT_EQ(read_request_facts(R"({"max_tokens": 1e3 })")->max_tokens, 1000);
  EXPECT_EQ(read_request_facts(R"({"max_tokens":1e300})")->max_tokens, 1'000'000'000'000'000);
  EXPECT_FALSE(read_request_facts(R"({"max_tokens":"9"})")->max_tokens);
}

// As replicas read them: what is written twice, or under another route's name, asks for no less.
TEST(RequestFactsTest, LengthsAreThoseOfTheRoute) {
  const auto limit = [](const std::string& path, const std::string& body) {
    return read_request_facts(body)->output_limit(path);
  };
  const std::string chat = "/v1/chat/completions", text = "/v1/completions";
  EXPECT_EQ(limit(text, R"({"max_completion_tokens":1,"max_tokens":400})"), 400);
  EXPECT_EQ(limit(text, R"({"max_completion_tokens":400})"), 16);
  EXPECT_EQ(limit(text, "{}"), 16);
  EXPECT_EQ(limit(chat, R"({"max_tokens":1,"max_completion_tokens":400})"), 400);
  EXPECT_EQ(limit(chat, R"({"max_tokens":1,"max_tokens":400})"), 400);
  EXPECT_FALSE(limit(chat, "{}"));
  for (const std::string& path : {chat, text}) {
    EXPECT_EQ(limit(path, R"({"n_predict":400})"), 400);
    EXPECT_FALSE(limit(path, R"({"n_predict":-1})")) << "until the context is full";
    EXPECT_FALSE(limit(path, R"({"n_predict":-1,"n_predict":5})"));
    EXPECT_EQ(limit(path, R"({"max_tokens":7,"n_predict":-1})"), 7);
    EXPECT_EQ(limit(path, R"({"max_tokens":7,"n_predict":400})"), 400);
  }
  EXPECT_EQ(read_request_facts(R"({"n":1,"n":3})")->n, 3);
}

// What a tenant is charged for must not depend on how it is written.
TEST(RequestFactsTest, CountsPromptsAndSeesWhoSaysHowAnAnswerBegan) {
  const auto prompts = [](const std::string& value) {
    return read_request_facts("{\"prompt\":" + value + "}")->prompts;
  };
  EXPECT_EQ(read_request_facts("{}")->prompts, 1);
  EXPECT_EQ(prompts("\"a, [b\""), 1);
  EXPECT_EQ(prompts("[1, 2, 3]"), 1) << "one, as token ids";
  EXPECT_EQ(prompts(R"([ "a", "b,c" ,"]"])"), 3);
  EXPECT_EQ(prompts("[[1,2],[3]]"), 2);
  EXPECT_EQ(prompts("[]"), 1);
  EXPECT_EQ(read_request_facts(R"({"input":["a","b"]})")->prompts, 2);
  EXPECT_FALSE(read_request_facts(R"({"prompt":"\"lorikeet_resume\":1"})")->resumes);
  EXPECT_TRUE(read_request_facts(R"({"lorikeet_resume":{}})")->resumes);
  EXPECT_TRUE(read_request_facts(R"({"lorikeet_resum\u0065":null})")->resumes);
}

TEST(RequestFactsTest, AQueryToScoreStandsInEachPrompt) {
  const std::string query = '"' + std::string(998, 'q') + '"';
  const std::string body = R"({"query":)" + query + R"(,"items":["a","b","c"]})";
  const RequestFacts facts = read_request_facts(body).value();
  const auto size = static_cast<int64_t>(body.size());
  EXPECT_EQ(facts.prompt_bytes("/v1/score", size), size + 2 * 1000);
  EXPECT_EQ(facts.prompt_bytes("/v1/completions", size), size);
  EXPECT_EQ(read_request_facts(R"({"query":"a","items":"b"})")->prompt_bytes("/v1/score", 25), 25);
}

TEST(RequestFactsTest, WhatIsNoObjectHasNone) {
  for (const char* bad :
       {"", " ", "[]", "null", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{\"a\" 1}",
        "{\"a\":[1}", "{\"a\":\"", "{\"a\":\"\\", "{} {}", "{\"a\":1}x", "{a:1}", "{\"a\":}"})
    EXPECT_FALSE(read_request_facts(bad)) << bad;
}

TEST(RequestFactsTest, AddsAField) {
  const std::string body = R"( { "model":"x"})", empty = "{ }";
  EXPECT_EQ(with_field(body, *read_request_facts(body), "k", "{\"a\":1}"), R"( {"k":{"a":1}, "model":"x"})");
  EXPECT_EQ(with_field(empty, *read_request_facts(empty), "k", "1"), R"({"k":1 })");
}

}  // namespace
}  // namespace lk
