// SPDX-License-Identifier: Apache-2.0
#include "lk/net/io_loop.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <stdexcept>
#include <thread>
#include <vector>

namespace lk {
namespace {

void spend(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

TEST(IoLoop, ALongQueueOfTasksLetsSocketsHaveTheirTurn) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  IoLoop loop([] {});
  IoWatch watch(loop, ends[0]);
  int done = 0, done_when_read = -1;
  watch.when_readable([&] { done_when_read = done; });
  constexpr int kTasks = 200;
  for (int i = 0; i < kTasks; ++i) {
    ASSERT_TRUE(loop.post([&, i] {
      EXPECT_EQ(done, i);  // in the order of their posts
      spend(std::chrono::microseconds(500));
      if (++done < kTasks) return;
      watch.close();
      loop.finish();
    }));
  }
  loop.run();
  EXPECT_EQ(done, kTasks);
  EXPECT_GE(done_when_read, 0);
  EXPECT_LT(done_when_read, kTasks);
  ::close(ends[1]);
}

TEST(IoLoop, EveryTurnIsMeasured) {
  std::vector<IoTurn> turns;
  IoLoop loop([] {}, [&](const IoTurn& turn) { turns.push_back(turn); });
  loop.post([&] {
    spend(std::chrono::milliseconds(20));
    loop.after(std::chrono::milliseconds(1), [&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      loop.finish();
    });
  });
  loop.run();
  ASSERT_EQ(turns.size(), 2U);
  EXPECT_GE(turns[0].seconds, 0.02);
  EXPECT_GT(turns[0].cpu_seconds, 0);
  EXPECT_GE(turns[1].seconds, 0.02);  // it waited, and so did everybody else
  EXPECT_LE(turns[1].cpu_seconds, turns[1].seconds);
}

TEST(IoLoop, WhatOneCallbackThrowsIsNobodyElses) {
  int flushed = 0, ran = 0;
  IoLoop loop([&] {
    ++flushed;
    throw std::runtime_error("thrown by the test, in the epilogue");
  });
  loop.post([] { throw std::runtime_error("thrown by the test, in a task"); });
  loop.post([&] {
    ++ran;
    loop.after(std::chrono::milliseconds(1), [] { throw 1; });
    loop.after(std::chrono::milliseconds(20), [&] {
      ++ran;
      loop.finish();
    });
  });
  loop.run();
  EXPECT_EQ(ran, 2);
  EXPECT_GE(flushed, 3);
}

}  // namespace
}  // namespace lk
