// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/work_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <set>
#include <stdexcept>

namespace lk {
namespace {

TEST(WorkQueue, RefusesWhatDoesNotFitAndKeepsTheOrder) {
  WorkQueue queue(1, 3);
  std::promise<void> open, running;
  std::vector<int> order;
  ASSERT_TRUE(queue.try_post([&] {
    running.set_value();
    open.get_future().wait();
  }));
  running.get_future().wait();  // out of the queue, on the thread
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.try_post([&, i] { order.push_back(i); }));
  bool ran = false;
  EXPECT_FALSE(queue.try_post([&] { ran = true; }));
  open.set_value();
  queue.stop();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2})) << "stop runs what is queued";
  EXPECT_FALSE(ran);
  EXPECT_FALSE(queue.try_post([&] { ran = true; })) << "stopped";
  EXPECT_FALSE(ran);
  queue.stop();  // again: nothing
}

TEST(WorkQueue, RunsEveryTakenTaskOnceOnItsThreads) {
  std::atomic<int> taken{0}, run{0};
  std::mutex mutex;
  std::set<std::thread::id> ids;
  {
    WorkQueue queue(3, 50);
    std::vector<std::thread> posters;
    for (int i = 0; i < 4; ++i)
      posters.emplace_back([&] {
        for (int k = 0; k < 500; ++k)
          taken += queue.try_post([&] {
            ++run;
            std::lock_guard lock(mutex);
            ids.insert(std::this_thread::get_id());
          });
      });
    for (std::thread& poster : posters) poster.join();
  }
  EXPECT_EQ(run, taken);
  EXPECT_GE(taken, 50);
  EXPECT_LE(ids.size(), 3u);
}

TEST(WorkQueue, ATaskThatThrowsIsNobodyElsesTrouble) {
  WorkQueue queue(1, 3);
  std::atomic<int> run{0};
  ASSERT_TRUE(queue.try_post([] { throw std::runtime_error("thrown by the test"); }));
  ASSERT_TRUE(queue.try_post([&] { ++run; }));
  queue.stop();
  EXPECT_EQ(run, 1);
}

}  // namespace
}  // namespace lk
