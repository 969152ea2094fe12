// SPDX-License-Identifier: Apache-2.0
#include "lk/train/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using ::testing::HasSubstr;

std::vector<JobProgress> jobs_at(int64_t step) {
  return {{.job = "a", .step = step, .total_steps = 100, .tokens = step * 50, .loss = 1.5},
          {.job = "b", .state = "paused: disk full", .step = 3, .total_steps = 10, .tokens = 7, .eval_loss = 2}};
}

TEST(Progress, PlainLinesForWhatIsNew) {
  std::string out;
  ProgressDisplay display([&](std::string_view text) { out += text; }, {});
  for (int tick = 0; tick <= 20; ++tick) display.update(jobs_at(tick), 100 + tick);
  display.finish(jobs_at(100), 130);
  EXPECT_EQ(out,
            "job                               step tokens/s     loss     eval      left  state\n"
            "a                                0/100        -   1.5000        -         -  running\n"
            "b                                 3/10        -        -   2.0000         -  paused: disk full\n"
            "a                               10/100       50   1.5000        -      1:30  running\n"
            "a                               20/100       50   1.5000        -      1:20  running\n"
            "a                              100/100      167   1.5000        -      0:00  running\n");
}

TEST(Progress, TheTableIsDrawnAnewOnATerminal) {
  std::vector<std::string> writes;
  ProgressDisplay display([&](std::string_view text) { writes.emplace_back(text); }, {.terminal = true, .columns = 60});
  display.update(jobs_at(1), 1);
  display.update(jobs_at(2), 1.1);  // too soon
  display.update(jobs_at(3), 1.3);
  ASSERT_EQ(writes.size(), 2u);
  EXPECT_EQ(std::count(writes[0].begin(), writes[0].end(), '\n'), 3);
  EXPECT_THAT(writes[0], ::testing::Not(HasSubstr("\033[3A")));
  EXPECT_THAT(writes[1], ::testing::StartsWith("\033[3Ajob "));
  for (size_t at = 0, end; (end = writes[1].find("\033[K\n", at)) != std::string::npos; at = end + 4)
    EXPECT_LE(end - at, 59u + 4);  // no line wraps
  // A shorter table clears what was below.
  display.finish({jobs_at(4)[0]}, 2);
  EXPECT_THAT(writes.back(), ::testing::EndsWith("\033[K\n\033[J"));
}

TEST(Progress, MoreJobsThanLines) {
  std::string out;
  ProgressDisplay display([&](std::string_view text) { out = text; }, {.terminal = true, .rows = 6});
  std::vector<JobProgress> jobs;
  for (int k = 0; k < 10; ++k) jobs.push_back({.job = std::to_string(k), .total_steps = 1});
  display.update(jobs, 0);
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 5);
  EXPECT_THAT(out, HasSubstr("... and 7 more"));
}

}  // namespace
}  // namespace lk
