// SPDX-License-Identifier: Apache-2.0
#include "lk/load/record.h"

#include <gtest/gtest.h>

namespace lk::load {
namespace {

struct Piece {
  double time;
  std::string bytes;
};

RequestRecord read_stream(const std::vector<Piece>& pieces, Status status = Status(), double end = 100, int code = 200,
                          bool stream = true) {
  RequestRecord record{.sent_s = 1};
  AnswerReader reader(record, stream);
  reader.on_head(code);
  for (const Piece& piece : pieces) reader.on_data(piece.bytes, piece.time);
  reader.on_done(status, end);
  return record;
}

std::string text_event(const std::string& text) {
  return R"(data: {"choices":[{"index":0,"text":")" + text + "\"}]}\n\n";
}
std::string chat_event(const std::string& delta) {
  return R"(data: {"choices":[{"index":0,"delta":)" + delta + "}]}\n\n";
}
const std::string kUsage = R"(data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}})"
                           "\n\n";
const std::string kDone = "data: [DONE]\n\n";

TEST(AnswerReader, TimesFirstContentGapsAndTheEnd) {
  const RequestRecord r = read_stream({{1.5, text_event("")},
                                       {2, text_event("a")},
                                       {2.5, text_event("b")},
                                       {4, text_event("c") + text_event("")},
                                       {5, kUsage + kDone}});
  EXPECT_EQ(r.outcome, Outcome::kOk) << r.error;
  EXPECT_DOUBLE_EQ(r.ttft_s(), 1);  // the empty text is no token
  EXPECT_DOUBLE_EQ(r.e2e_s(), 3);   // the usage event is no part of the answer
  EXPECT_EQ(r.gaps_s, (std::vector<float>{0.5f, 1.5f}));
  EXPECT_EQ(r.prompt_tokens, 7);
  EXPECT_EQ(r.output_tokens, 5);
  EXPECT_DOUBLE_EQ(r.tpot_s(), 2 / 4.0);
}

TEST(AnswerReader, ReadsChatDeltas) {
  const RequestRecord r = read_stream({{2, chat_event(R"({"role":"assistant","content":""})")},
                                       {3, chat_event(R"({"reasoning_content":"hm"})")},
                                       {4, chat_event(R"({"content":"a"})")},
                                       {5, chat_event(R"({"tool_calls":[{}]})")},
                                       {6, chat_event("{}") + kUsage + kDone}});
  EXPECT_EQ(r.outcome, Outcome::kOk);
  EXPECT_DOUBLE_EQ(r.first_s, 3);
  EXPECT_EQ(r.gaps_s.size(), 2u);
  EXPECT_DOUBLE_EQ(r.end_s, 6);
}

TEST(AnswerReader, TakesUsageThatComesWithEveryEvent) {
  std::string event = text_event("a");
  const RequestRecord r =
      read_stream({{2, R"(data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":1}})"
                       "\n\n"},
                   {3, R"(data: {"choices":[{"text":"b"}],"usage":{"prompt_tokens":3,"completion_tokens":2}})"
                       "\n\n" +
                           kDone}});
  EXPECT_EQ(r.output_tokens, 2);
  EXPECT_TRUE(r.has_usage);
}

TEST(AnswerReader, CountsEventsWhenThereIsNoUsage) {
  const RequestRecord r = read_stream({{2, text_event("a") + text_event("b") + kDone}});
  EXPECT_EQ(r.outcome, Outcome::kOk);
  EXPECT_FALSE(r.has_usage);
  EXPECT_EQ(r.output_tokens, 2);
}

TEST(AnswerReader, TellsFailuresApart) {
  EXPECT_EQ(read_stream({{2, text_event("a")}}).outcome, Outcome::kBroken);  // no [DONE]
  EXPECT_EQ(read_stream({{2, text_event("a")}}, data_loss("closed")).outcome, Outcome::kBroken);
  EXPECT_EQ(read_stream({}, unavailable("refused")).outcome, Outcome::kBroken);
  EXPECT_EQ(read_stream({{2, text_event("a")}}, deadline_exceeded("late")).outcome, Outcome::kTimeout);
  EXPECT_EQ(read_stream({}, cancelled("stop")).outcome, Outcome::kCancelled);
  const RequestRecord inside = read_stream({{2, text_event("a") +
                                                    R"(data: {"error":{"message":"out of pages"}})"
                                                    "\n\n" +
                                                    kDone}});
  EXPECT_EQ(inside.outcome, Outcome::kServerError);
  EXPECT_EQ(inside.error, "out of pages");
  EXPECT_DOUBLE_EQ(inside.end_s, 100);
  for (const char* bad : {"data: {\n\n", "data: []\n\n", "data: 7\n\n"})
    EXPECT_EQ(read_stream({{2, bad + kDone}}).outcome, Outcome::kServerError) << bad;
  const RequestRecord refused = read_stream({{2, R"({"error":{"message":"slow down","code":429}})"}}, Status(), 3, 429);
  EXPECT_EQ(refused.outcome, Outcome::kHttpError);
  EXPECT_EQ(refused.error, "slow down");
  EXPECT_EQ(read_stream({{2, "<html>"}}, Status(), 3, 502).error, "<html>");
}

TEST(AnswerReader, ReadsAnAnswerThatIsNotAStream) {
  const RequestRecord r = read_stream({{2, R"({"choices":[{"message":{"content":"hi"}}],"us)"},
                                       {3, R"(age":{"prompt_tokens":4,"completion_tokens":2}})"}},
                                      Status(), 3, 200, false);
  EXPECT_EQ(r.outcome, Outcome::kOk) << r.error;
  EXPECT_LT(r.first_s, 0);
  EXPECT_DOUBLE_EQ(r.e2e_s(), 2);
  EXPECT_EQ(r.output_tokens, 2);
}

}  // namespace
}  // namespace lk::load
