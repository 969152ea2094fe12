// SPDX-License-Identifier: Apache-2.0
#include "lk/net/output_queue.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

// Sends all of it, `step` bytes at a time.
std::string drain(OutputQueue& queue, size_t step) {
  std::string all;
  while (!queue.empty()) {
    const std::string_view front = queue.front().substr(0, step);
    all += front;
    queue.sent(front.size());
  }
  return all;
}

TEST(OutputQueue, KeepsTheOrder) {
  OutputQueue queue;
  for (int round = 0; round < 2; ++round) {
    queue.append("head ");
    queue.append_part("part ");
    queue.append_part("");
    queue.append_part("another ");
    queue.append("tail");
    EXPECT_EQ(queue.bytes(), 22U);
    EXPECT_EQ(queue.gathered_bytes(), 9U);
    EXPECT_EQ(drain(queue, 3), "head part another tail");
    EXPECT_EQ(queue.bytes(), 0U);
    EXPECT_EQ(queue.gathered_bytes(), 0U);
    EXPECT_EQ(queue.front(), "");
  }
}

TEST(OutputQueue, SmallWritesLeaveTogether) {
  OutputQueue queue;
  for (int i = 0; i < 100; ++i) queue.append("0123456789");
  EXPECT_EQ(queue.front().size(), 1000U);
  queue.sent(500);
  queue.append("x");
  EXPECT_EQ(queue.front().size(), 501U);  // the same bytes, and more
}

TEST(OutputQueue, WhatIsClearedIsGone) {
  OutputQueue queue;
  queue.append("head");
  queue.append_part("part");
  queue.sent(2);
  queue.clear();
  EXPECT_TRUE(queue.empty());
  queue.append("next");
  EXPECT_EQ(drain(queue, 10), "next");
}

}  // namespace
}  // namespace lk
