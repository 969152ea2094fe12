// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/work_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <set>
#include <stdexcept>

#include "lk/base/thread_time.h"

namespace lk {
namespace {

WorkQueue::Task task(std::function<void()> run, const std::string& tenant = "a", double weight = 1) {
  return {.tenant = tenant, .weight = weight, .run = std::move(run), .refuse = [](const Status&) {}};
}

void burn(int ms) {
  const auto end = thread_time() + std::chrono::milliseconds(ms);
  while (thread_time() < end) {
  }
}

// Holds a queue's only thread until it goes out of scope.
class Hold {
 public:
  explicit Hold(WorkQueue& queue, const std::string& tenant = "hold") {
    const auto running = std::make_shared<std::promise<void>>();
    const auto hold = [running, open = open_.get_future().share()] {
      running->set_value();
      open.wait();
    };
    EXPECT_TRUE(queue.post({.tenant = tenant, .run = hold, .refuse = [hold](const Status&) { hold(); }}).status.ok());
    running->get_future().wait();
  }
  ~Hold() { open_.set_value(); }

 private:
  std::promise<void> open_;
};

TEST(WorkQueue, RefusesWhatDoesNotFitAndKeepsATenantsOrder) {
  WorkQueue queue({.num_threads = 1, .max_waiting = 3});
  std::vector<int> order;
  bool ran = false;
  {
    Hold hold(queue);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.post(task([&, i] { order.push_back(i); })).status.ok());
    const WorkQueue::Posted refused = queue.post(task([&] { ran = true; }));
    EXPECT_EQ(refused.status.code(), StatusCode::kUnavailable);
    EXPECT_GT(refused.retry_after_seconds, 0);
    EXPECT_EQ(queue.stats().waiting, 3);
    EXPECT_TRUE(queue.post(task([&] { order.push_back(3); }, "b")).status.ok()) << "who has none waiting is let in";
  }
  queue.stop();
  EXPECT_EQ(std::set<int>(order.begin(), order.end()), (std::set<int>{0, 1, 2, 3})) << "stop runs what is queued";
  std::erase(order, 3);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  EXPECT_FALSE(ran);
  EXPECT_FALSE(queue.post(task([&] { ran = true; })).status.ok()) << "stopped";
  EXPECT_FALSE(ran);
  queue.stop();  // again: nothing
}

TEST(WorkQueue, RunsEveryTakenTaskOnceOnItsThreads) {
  std::atomic<int> taken{0}, run{0};
  std::mutex mutex;
  std::set<std::thread::id> ids;
  {
    WorkQueue queue({.num_threads = 3, .max_waiting = 50});
    std::vector<std::thread> posters;
    for (int i = 0; i < 4; ++i)
      posters.emplace_back([&, i] {
        for (int k = 0; k < 500; ++k) {
          WorkQueue::Task one = task(
              [&] {
                ++run;
                std::lock_guard lock(mutex);
                ids.insert(std::this_thread::get_id());
              },
              std::to_string(i % 2));
          one.heavy = k % 3 == 0;
          taken += queue.post(std::move(one)).status.ok();
        }
      });
    for (std::thread& poster : posters) poster.join();
  }
  EXPECT_EQ(run, taken);
  EXPECT_GE(taken, 50);
  EXPECT_LE(ids.size(), 3u);
}

TEST(WorkQueue, ATaskThatThrowsIsNobodyElsesTrouble) {
  WorkQueue queue({.num_threads = 1});
  std::atomic<int> run{0};
  ASSERT_TRUE(queue.post(task([] { throw std::runtime_error("thrown by the test"); })).status.ok());
  ASSERT_TRUE(queue.post(task([&] { ++run; })).status.ok());
  queue.stop();
  EXPECT_EQ(run, 1);
}

TEST(WorkQueue, ServesTenantsByTheTimeTheirTasksTook) {
  WorkQueue queue({.num_threads = 1});
  std::string order;  // one letter a task
  {
    Hold hold(queue);
    for (int i = 0; i < 10; ++i)
      queue.post(task(
          [&] {
            burn(10);
            order += 's';
          },
          "slow"));
    for (int i = 0; i < 10; ++i) queue.post(task([&] { order += 'q'; }, "quick"));
  }
  queue.stop();
  // One slow task is taken before anything is known, none of the others before all that cost nothing.
  EXPECT_LE(order.find_last_of('q'), 12u) << order;
}

TEST(WorkQueue, SharesTimeByWeight) {
  WorkQueue queue({.num_threads = 1});
  std::string order;
  {
    Hold hold(queue);
    for (int i = 0; i < 30; ++i)
      for (const auto& [tenant, weight] : {std::pair{"1", 1.0}, {"4", 4.0}})
        queue.post(task(
            [&order, tenant] {
              burn(2);
              order += tenant;
            },
            tenant, weight));
  }
  queue.stop();
  const auto early = std::count(order.begin(), order.begin() + 20, '4');
  EXPECT_GE(early, 13) << order;
  EXPECT_LE(early, 18) << order;
}

TEST(WorkQueue, HeavyTasksOfOneTenantLeaveAThreadToOthers) {
  WorkQueue queue({.num_threads = 2});
  std::promise<void> open;
  const std::shared_future<void> opened = open.get_future().share();
  std::atomic<int> heavy{0}, most{0};
  for (int i = 0; i < 4; ++i) {
    WorkQueue::Task one = task([&] {
      most = std::max(most.load(), ++heavy);
      opened.wait();
      --heavy;
    });
    one.heavy = true;
    ASSERT_TRUE(queue.post(std::move(one)).status.ok());
  }
  std::promise<void> light;
  ASSERT_TRUE(queue.post(task([&] { light.set_value(); }, "other")).status.ok());
  EXPECT_EQ(light.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  open.set_value();
  queue.stop();
  EXPECT_EQ(most, 1);
}

TEST(WorkQueue, OthersGoFirstWhileALongTaskYields) {
  WorkQueue queue({.num_threads = 1});
  std::string order;
  {
    Hold hold(queue);
    for (int i = 0; i < 2; ++i)
      queue.post(task(
          [&] {
            order += '(';
            for (int k = 0; k < 20; ++k) {
              burn(1);
              queue.yield();
            }
            order += ')';
          },
          "long"));
    // The long tenant's turn comes first: what others do is charged as long as it is not known.
    for (int i = 0; i < 5; ++i) queue.post(task([&] { order += 'q'; }, "quick"));
    for (int i = 0; i < 50; ++i)
      queue.post(task(
          [&] {
            burn(5);
            order += 's';
          },
          "slow"));
  }
  queue.stop();
  const std::string first = order.substr(order.find('('), order.find(')') - order.find('('));
  EXPECT_NE(first.find('s'), std::string::npos) << order;
  EXPECT_EQ(order.find("(("), std::string::npos) << "its own go after it: " << order;
  EXPECT_LE(std::count(first.begin(), first.end(), 's'), 7) << "half of the time is the long one's: " << order;
  EXPECT_LT(order.find_last_of('q'), order.find(')')) << order;
}

TEST(WorkQueue, WithdrawnTasksNeverRunAndHoldNothing) {
  WorkQueue queue({.num_threads = 1, .max_waiting = 2});
  const auto held = std::make_shared<int>();
  bool ran = false;
  {
    Hold hold(queue);
    const WorkQueue::Id first = queue.post(task([&ran, held] { ran = true; })).id;
    const WorkQueue::Id second = queue.post(task([&ran, held] { ran = true; })).id;
    EXPECT_FALSE(queue.post(task([] {})).status.ok());
    queue.withdraw(first);
    EXPECT_EQ(held.use_count(), 2) << "what it held is let go of at once";
    EXPECT_TRUE(queue.post(task([] {})).status.ok()) << "its place is free";
    queue.withdraw(second);
    queue.withdraw(second);
    queue.withdraw(0);
    queue.withdraw(1000);
  }
  queue.stop();
  EXPECT_FALSE(ran);
}

TEST(WorkQueue, RefusesWhatWaitsWhenTheServerEnds) {
  WorkQueue queue({.num_threads = 1});
  std::vector<std::string> heard;
  bool ran = false;
  {
    Hold hold(queue);
    for (int i = 0; i < 3; ++i)
      queue.post({.tenant = std::to_string(i),
                  .run = [&] { ran = true; },
                  .refuse = [&](const Status& status) { heard.push_back(status.message()); }});
    queue.refuse_waiting(unavailable("the end"));
    EXPECT_EQ(heard, (std::vector<std::string>(3, "the end")));
    EXPECT_EQ(queue.post(task([&] { ran = true; })).status.message(), "the end");
  }
  queue.stop();
  EXPECT_FALSE(ran);
}

TEST(WorkQueue, WhatWaitedTooLongIsRefused) {
  WorkQueue queue({.num_threads = 1, .max_wait = std::chrono::milliseconds(1)});
  std::promise<StatusCode> refused;
  {
    Hold hold(queue);
    queue.post({.tenant = "a", .run = [] {}, .refuse = [&](const Status& s) { refused.set_value(s.code()); }});
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(refused.get_future().get(), StatusCode::kUnavailable);
}

TEST(WorkQueue, ATenantsTimePerMinuteIsBounded) {
  WorkQueue queue({.num_threads = 1, .max_seconds_per_minute = 0.02});
  std::promise<void> done;
  ASSERT_TRUE(queue.post(task([&] { burn(200); }, "greedy")).status.ok());
  ASSERT_TRUE(queue.post(task([&] { done.set_value(); }, "other")).status.ok());
  done.get_future().wait();
  const WorkQueue::Posted refused = queue.post(task([] {}, "greedy"));
  EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted);
  EXPECT_GT(refused.retry_after_seconds, 60) << "a debt of nine minutes";
  EXPECT_TRUE(queue.post(task([] {}, "other")).status.ok());
}

}  // namespace
}  // namespace lk
