// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/answer_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lk/base/rng.h"

namespace lk {
namespace {

using Verdict = AnswerLog::Verdict;

TEST(AnswerCommitTest, ReadsWhatItWrote) {
  for (const AnswerCommit& commit :
       {AnswerCommit{}, AnswerCommit{.choice = 3, .first = 17, .tokens = {1, 2, 50'000}}, AnswerCommit{.end = true},
        AnswerCommit{.choice = 1, .first = 2, .tokens = {}, .done = true},
        AnswerCommit{.tokens = {5}, .prompt = AnswerCommit::Prompt{40, 32}, .digest = "0af"}}) {
    const std::string line = format_commit(commit);
    ASSERT_TRUE(line.starts_with(": lk ")) << "a comment for everybody else";
    ASSERT_TRUE(line.ends_with("\n\n"));
    EXPECT_EQ(parse_commit(line.substr(5)).value(), commit) << line;
  }
  for (const char* bad : {"", "1", "{\"choice\":-1}", "{\"tokens\":[-1]}", "{\"tokens\":7}", "{\"first\":1.5}",
                          "{\"digest\":\"x\"}", "{"})
    EXPECT_EQ(parse_commit(bad).status().code(), StatusCode::kDataLoss) << bad;
}

struct Group {
  std::string events;
  AnswerCommit commit;
  bool operator==(const Group&) const = default;
};

std::vector<Group> read(std::string_view stream, size_t piece, Status* status = nullptr) {
  std::vector<Group> groups;
  CommitReader reader([&](std::string_view events, AnswerCommit commit) {
    groups.push_back({std::string(events), std::move(commit)});
  });
  Status last;
  for (size_t at = 0; at < stream.size(); at += piece) last = reader.push(stream.substr(at, piece));
  if (status) *status = last;
  return groups;
}

TEST(CommitReaderTest, GroupsAreTheSameHoweverTheBytesArrive) {
  const AnswerCommit one{.tokens = {7}}, two{.first = 1, .tokens = {8, 9}, .done = true}, end{.end = true};
  const std::string stream = "data: {\"a\":1}\n\ndata: {\"b\":2}\n\n" + format_commit(one) + ": ping\n\n" +
                             format_commit(two) + "data: [DONE]\r\n\r\n" + format_commit(end) + "data: more\n\n";
  const std::vector<Group> expected = {
      {"data: {\"a\":1}\n\ndata: {\"b\":2}\n\n", one}, {"", two}, {"data: [DONE]\n\n", end}};
  for (size_t piece = 1; piece <= stream.size(); ++piece) EXPECT_EQ(read(stream, piece), expected) << piece;
}

TEST(CommitReaderTest, RefusesWhatIsNoCommitAndWhatNeverComes) {
  Status status;
  EXPECT_TRUE(read(": lk {\"choice\":\"0\"}\n\n", 100, &status).empty());
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  CommitReader reader([](std::string_view, const AnswerCommit&) { FAIL() << "there was none"; }, {}, 1000);
  Status last;
  for (int i = 0; i < 100 && last.ok(); ++i) last = reader.push("data: x\n\n");
  EXPECT_TRUE(last.ok()) << "900 bytes";
  for (int i = 0; i < 100 && last.ok(); ++i) last = reader.push("data: x\n\n");
  EXPECT_EQ(last.code(), StatusCode::kDataLoss);
  EXPECT_EQ(reader.push(format_commit({})).code(), StatusCode::kDataLoss) << "ever after";
}

TEST(AnswerLogTest, JudgesOneGroupAtATime) {
  AnswerLog log;
  EXPECT_EQ(log.take({.end = true}), Verdict::kGap) << "nothing has come";
  EXPECT_EQ(log.take({.first = 1, .tokens = {2}}), Verdict::kGap);
  EXPECT_EQ(log.take({.tokens = {1, 2}, .prompt = AnswerCommit::Prompt{20, 16}}), Verdict::kNews);
  EXPECT_EQ(log.take({.tokens = {1, 2}}), Verdict::kKnown);
  EXPECT_EQ(log.take({.tokens = {1, 3}}), Verdict::kDiffers);
  EXPECT_EQ(log.take({.tokens = {1, 2}, .done = true}), Verdict::kDiffers) << "it went on elsewhere";
  EXPECT_EQ(log.take({.first = 1, .tokens = {2, 3}}), Verdict::kDiffers) << "its groups end elsewhere";
  EXPECT_EQ(log.take({.first = 3, .tokens = {4}}), Verdict::kGap);
  EXPECT_EQ(log.take({.choice = 1, .tokens = {9}}), Verdict::kNews);
  EXPECT_EQ(log.take({.first = 2, .tokens = {3}, .done = true}), Verdict::kNews);
  EXPECT_EQ(log.take({.first = 3, .tokens = {4}}), Verdict::kDiffers) << "it has ended";
  EXPECT_EQ(log.take({.end = true}), Verdict::kGap) << "choice 1 has not";
  EXPECT_EQ(log.choices_json(),
            R"([{"tokens":[1,2,3],"prompt_tokens":20,"cached_tokens":16,"done":true},{"tokens":[9]}])");
  EXPECT_EQ(log.take({.choice = 1, .first = 1, .done = true}), Verdict::kNews);
  EXPECT_FALSE(log.whole());
  EXPECT_EQ(log.take({.end = true}), Verdict::kNews);
  EXPECT_EQ(log.take({.end = true}), Verdict::kKnown);
  EXPECT_TRUE(log.whole());
  EXPECT_EQ(log.num_tokens(), 4);
}

// Any number of replicas that compute alike, each beginning at what the client has, sending at its own pace, cut at any
// time: each token arrives exactly once and in order.
TEST(AnswerLogTest, EveryInterleavingGivesEachTokenOnce) {
  for (uint64_t seed = 0; seed < 100'000; ++seed) {
    Rng rng(seed);
    const auto choices = static_cast<int>(1 + rng.below(3));
    // The answer, and where groups end: the same for everybody.
    std::vector<std::vector<AnswerCommit>> answer(static_cast<size_t>(choices));
    for (int c = 0; c < choices; ++c) {
      int64_t first = 0;
      const auto groups = 1 + rng.below(6);
      for (uint64_t g = 0; g < groups; ++g) {
        AnswerCommit commit{.choice = c, .first = first, .done = g + 1 == groups};
        const auto count = 1 + rng.below(2);
        for (uint64_t t = 0; t < count; ++t) commit.tokens.push_back(static_cast<int32_t>(rng.below(5)));
        first += static_cast<int64_t>(commit.tokens.size());
        answer[static_cast<size_t>(c)].push_back(commit);
      }
    }
    AnswerLog log;
    std::vector<std::vector<int32_t>> shown(static_cast<size_t>(choices));
    struct Source {
      std::vector<size_t> next;  // group, by choice
    };
    std::vector<Source> sources;
    int ended = 0;
    for (int step = 0; !log.whole(); ++step) {
      ASSERT_LT(step, 10'000) << seed;
      if (sources.empty() || rng.below(10) == 0) {  // one more goes on from here
        Source source;
        for (size_t c = 0; c < answer.size(); ++c) {
          const size_t known = c < log.choices().size() ? log.choices()[c].tokens.size() : 0;
          size_t g = 0;
          while (g < answer[c].size() && answer[c][g].first < static_cast<int64_t>(known)) ++g;
          source.next.push_back(g);
        }
        sources.push_back(source);
      }
      const size_t s = rng.below(sources.size());
      if (rng.below(12) == 0) {
        sources.erase(sources.begin() + static_cast<ptrdiff_t>(s));
        continue;
      }
      std::vector<size_t> open;
      for (size_t c = 0; c < answer.size(); ++c)
        if (sources[s].next[c] < answer[c].size()) open.push_back(c);
      if (open.empty()) {
        const Verdict verdict = log.take({.end = true});
        ASSERT_EQ(verdict, Verdict::kNews) << seed;
        ++ended;
        continue;
      }
      const size_t c = open[rng.below(open.size())];
      const AnswerCommit& commit = answer[c][sources[s].next[c]++];
      const Verdict verdict = log.take(commit);
      ASSERT_TRUE(verdict == Verdict::kNews || verdict == Verdict::kKnown) << seed;
      if (verdict == Verdict::kNews) shown[c].insert(shown[c].end(), commit.tokens.begin(), commit.tokens.end());
    }
    EXPECT_EQ(ended, 1);
    for (size_t c = 0; c < answer.size(); ++c) {
      std::vector<int32_t> expected;
      for (const AnswerCommit& commit : answer[c])
        expected.insert(expected.end(), commit.tokens.begin(), commit.tokens.end());
      ASSERT_EQ(shown[c], expected) << seed;
      ASSERT_EQ(log.choices()[c].tokens, expected) << seed;
    }
  }
}

// A replica that computes otherwise is noticed at the first token that differs.
TEST(AnswerLogTest, NoticesEveryOtherToken) {
  AnswerLog log;
  for (int32_t t = 0; t < 20; ++t) ASSERT_EQ(log.take({.first = t, .tokens = {t}}), Verdict::kNews);
  for (int32_t t = 0; t < 20; ++t) EXPECT_EQ(log.take({.first = t, .tokens = {t + 1}}), Verdict::kDiffers);
}

}  // namespace
}  // namespace lk
