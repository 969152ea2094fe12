// SPDX-License-Identifier: Apache-2.0
// What a request for scores is read into: its query once, however many items there are.
#include "lk/serve/openai/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ApiResult<ScoreRequest> parse(const std::string& query, const std::string& items, bool item_first = false) {
  return parse_score_request(
      fmt::format(R"({{"query":{},"items":{},"item_first":{},"label_token_ids":[5]}})", query, items, item_first),
      {.context = 64, .vocab_size = 100});
}

std::string items(int count) {
  std::string list = "\"b\"";
  for (int k = 1; k < count; ++k) list += ",\"b\"";
  return "[" + list + "]";
}

TEST(ScoreRequestTest, PromptsAreMadeWhenTheyAreNeeded) {
  const auto texts = parse("\"q \"", R"(["one","two"])");
  ASSERT_TRUE(texts.ok()) << texts.error.message;
  EXPECT_EQ(texts.value->items.size(), 2u);
  EXPECT_EQ(texts.value->prompt(1).prompt, "q two");
  EXPECT_EQ(texts.value->prompt(1).max_tokens, 1);
  EXPECT_EQ(parse("\"q \"", "\"one\"", true).value->prompt(0).prompt, "oneq ");
  EXPECT_THAT(parse("[1,2]", "[[3],[4]]").value->prompt(1).token_ids, ElementsAre(1, 2, 4));
  EXPECT_THAT(parse("[1,2]", "[3]", true).value->prompt(0).token_ids, ElementsAre(3, 1, 2));
}

TEST(ScoreRequestTest, QueryTimesItemsIsRefusedBeforeAnyPromptIsMade) {
  const std::string query = '"' + std::string(1 << 20, 'w') + '"';
  EXPECT_TRUE(parse(query, items(32)).ok());
  const auto refused = parse(query, items(33));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error.status, 400);
  EXPECT_EQ(refused.error.param, "items");
  EXPECT_THAT(refused.error.message, HasSubstr("prompts of 34603008 bytes, more than 33554432"));
  std::string ids = "[5";
  for (int k = 1; k < 1 << 18; ++k) ids += ",5";
  std::string list = "[[5]";
  for (int k = 1; k < 64; ++k) list += ",[5]";
  EXPECT_THAT(parse(ids + "]", list + "]").error.message, HasSubstr("send fewer items at a time"));
}

}  // namespace
}  // namespace lk
