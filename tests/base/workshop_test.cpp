// SPDX-License-Identifier: Apache-2.0
#include "lk/base/workshop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>

namespace lk {
namespace {

using Finish = Workshop::Finish;

TEST(Workshop, ResultsComeBackOnTheOwnersThread) {
  Workshop workshop({{.name = "test", .num_threads = 2}});
  std::thread::id worked, finished;
  workshop.submit(0, [&](const std::stop_token&) -> Finish {
    worked = std::this_thread::get_id();
    return [&] { finished = std::this_thread::get_id(); };
  });
  workshop.collect(true);
  EXPECT_EQ(finished, std::this_thread::get_id());
  EXPECT_NE(worked, std::this_thread::get_id());
  workshop.collect();
}

TEST(Workshop, UrgentJobsGoFirstAndEqualOnesInOrder) {
  Workshop workshop({{.name = "test"}});
  std::promise<void> gate;
  std::string order;
  workshop.submit(0, [&](const std::stop_token&) -> Finish {
    gate.get_future().wait();
    return nullptr;
  });
  const auto job = [&](char name) {
    return [&order, name](const std::stop_token&) -> Finish { return [&order, name] { order += name; }; };
  };
  workshop.submit(0, job('c'), Workshop::Priority::kIdle);
  workshop.submit(0, job('d'), Workshop::Priority::kIdle);
  workshop.submit(0, job('a'));
  workshop.submit(0, job('b'));
  gate.set_value();
  while (order.size() < 4) workshop.collect(true);
  EXPECT_EQ(order, "abcd");
}

TEST(Workshop, IdleJobsLeaveAThreadToUrgentOnes) {
  Workshop workshop({{.name = "test", .num_threads = 2}});
  std::promise<void> running, gate;
  int ended = 0;
  workshop.submit(
      0,
      [&](const std::stop_token&) -> Finish {
        running.set_value();
        gate.get_future().wait();
        return [&] { ++ended; };
      },
      Workshop::Priority::kIdle);
  running.get_future().wait();
  std::atomic<bool> open = false;
  for (int i = 0; i < 3; ++i)
    workshop.submit(
        0,
        [&](const std::stop_token&) -> Finish {
          EXPECT_TRUE(open) << "it took the last thread";
          return [&] { ++ended; };
        },
        Workshop::Priority::kIdle);
  bool done = false;
  for (int i = 0; i < 2; ++i) {  // both on the other thread
    workshop.submit(0, [&](const std::stop_token&) -> Finish { return [&] { done = true; }; });
    while (!std::exchange(done, false)) workshop.collect(true);
  }
  open = true;
  gate.set_value();
  while (ended < 4) workshop.collect(true);
}

TEST(Workshop, BenchesDoNotWaitForEachOther) {
  Workshop workshop({{.name = "slow"}, {.name = "fast"}});
  std::promise<void> gate;
  workshop.submit(0, [&](const std::stop_token&) -> Finish {
    gate.get_future().wait();
    return nullptr;
  });
  bool done = false;
  workshop.submit(1, [&](const std::stop_token&) -> Finish { return [&] { done = true; }; });
  workshop.collect(true);
  EXPECT_TRUE(done);
  gate.set_value();
}

TEST(Workshop, CancelForgetsWhatHasNotBegunAndStopsWhatRuns) {
  Workshop workshop({{.name = "test"}});
  std::promise<void> running;
  bool stopped = false;
  const auto first = workshop.submit(0, [&](const std::stop_token& stop) -> Finish {
    running.set_value();
    while (!stop.stop_requested()) std::this_thread::yield();
    return [&] { stopped = true; };
  });
  bool ran = false;
  const auto second = workshop.submit(0, [&](const std::stop_token&) -> Finish {
    ran = true;
    return nullptr;
  });
  running.get_future().wait();
  EXPECT_TRUE(workshop.cancel(second));
  EXPECT_FALSE(workshop.cancel(second));
  EXPECT_FALSE(workshop.cancel(first));
  workshop.wait_until_idle(first);
  workshop.collect(true);
  EXPECT_TRUE(stopped) << "what was stopped finishes all the same";
  EXPECT_FALSE(ran);
}

TEST(Workshop, EndsWithJobsOfEveryState) {
  auto held = std::make_shared<int>(0);
  {
    Workshop workshop({{.name = "test"}});
    std::promise<void> running;
    workshop.submit(0, [held](const std::stop_token&) -> Finish { return [held] { FAIL(); }; });
    workshop.submit(0, [&, held](const std::stop_token& stop) -> Finish {
      running.set_value();
      while (!stop.stop_requested()) std::this_thread::yield();
      return nullptr;
    });
    workshop.submit(0, [held](const std::stop_token&) -> Finish {
      ADD_FAILURE() << "begun after the end";
      return nullptr;
    });
    running.get_future().wait();
  }
  EXPECT_EQ(held.use_count(), 1);
}

TEST(Workshop, TheListenerHearsOfResultsOnly) {
  std::atomic<int> heard{0};
  Workshop workshop({{.name = "test"}});
  workshop.set_listener([&] { ++heard; });
  std::promise<void> heard_one;
  workshop.submit(0, [&](const std::stop_token&) -> Finish { return nullptr; });
  workshop.submit(0, [&](const std::stop_token&) -> Finish { return [] {}; });
  workshop.submit(0, [&](const std::stop_token&) -> Finish {  // after the others: one thread
    heard_one.set_value();
    return nullptr;
  });
  heard_one.get_future().wait();
  EXPECT_EQ(heard, 1);
}

}  // namespace
}  // namespace lk
