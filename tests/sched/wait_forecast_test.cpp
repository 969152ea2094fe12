// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/wait_forecast.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

constexpr Micros kSecond = 1'000'000;

// 100 prompt tokens start in each tenth of a second while others wait, as long as a sample takes.
void queue_for_a_second(WaitForecast& forecast, Micros begin) {
  forecast.step_ended(begin, 0, true);
  for (Micros now = begin + kSecond / 10; now <= begin + kSecond; now += kSecond / 10)
    forecast.step_ended(now, 100, now < begin + kSecond);
}

TEST(WaitForecast, IdleTimeDoesNotCount) {
  WaitForecast busy, rested;
  EXPECT_EQ(busy.rate().until_start(1000), 0) << "nothing was measured";
  for (int round = 0; round < 3; ++round) {
    queue_for_a_second(busy, round * kSecond);
    queue_for_a_second(rested, round * 3600 * kSecond);  // an hour of nothing before each
  }
  EXPECT_NEAR(static_cast<double>(busy.rate().until_start(1000)), kSecond, 2);
  EXPECT_EQ(rested.rate().until_start(1000), busy.rate().until_start(1000));
}

TEST(WaitForecast, ASampleGoesOnUntilSomethingStarted) {
  WaitForecast forecast;
  forecast.step_ended(0, 0, true);
  forecast.step_ended(10 * kSecond, 0, true);
  EXPECT_EQ(forecast.rate().until_start(100), 0);
  forecast.step_ended(20 * kSecond, 100, true);
  EXPECT_NEAR(static_cast<double>(forecast.rate().until_start(100)), 20 * kSecond, 2);
}

}  // namespace
}  // namespace lk
