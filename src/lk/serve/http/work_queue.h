// SPDX-License-Identifier: Apache-2.0
// WorkQueue: a few threads for what would hold up an io thread: parsing, templates, tokenizing, compiling grammars.
// Fair between tenants by the processor time that their tasks took: virtual counters as for tokens
// (sched/fair_queue.h). Bounded in tasks, shared by weight, and in the time that one may wait.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "lk/base/shared_bound.h"
#include "lk/base/status.h"
#include "lk/sched/fair_queue.h"

namespace lk {

class WorkQueue {
 public:
  using Clock = std::chrono::steady_clock;
  using Id = uint64_t;  // of a task; 0: none

  struct Options {
    int num_threads = 2;
    const char* thread_name = "lk-worker";
    int nice = 0;                // added to the threads' nice value
    int64_t max_waiting = 4096;  // tasks
    Clock::duration max_wait = std::chrono::seconds(60);
    // Of processor time that a tenant's tasks may take, per minute; then its tasks are refused. 0 = no limit.
    double max_seconds_per_minute = 0;
  };
  struct Task {
    std::string tenant;
    double weight = 1;
    bool heavy = false;  // may take long: those of one tenant together leave a thread to others, if there are two
    std::function<void()> run;
    // Called instead of run(), on one of the threads or on that of refuse_waiting(): it waited too long, or nothing
    // runs any more.
    std::function<void(const Status&)> refuse;
  };
  struct Posted {
    Id id = 0;
    Status status;  // why it was not taken: kResourceExhausted its tenant's budget, kUnavailable anything else
    double retry_after_seconds = 0;
  };

  explicit WorkQueue(const Options& options);
  ~WorkQueue() { stop(); }

  // When it does not fit, the task is not taken, and none of its functions is called.
  Posted post(Task task);
  // Drops a task that has not begun; neither of its functions is called.
  void withdraw(Id id);
  // From a task that may take long: tasks of tenants that have none running go first, on this thread, as long as they
  // took no longer together than this one did so far.
  void yield();
  // Refuses what waits, and whatever comes from now on.
  void refuse_waiting(const Status& status);
  // Runs what is queued and ends the threads. Once; not from a task.
  void stop();

  struct Stats {
    int64_t waiting = 0, running = 0;
  };
  Stats stats() const;

 private:
  struct Lane;
  struct Item {
    Id id = 0;
    Task task;
    Lane* lane = nullptr;
    Clock::time_point posted;
  };
  // A tenant's tasks.
  struct Lane : CounterGroup::Member {
    std::string tenant;
    std::list<Item> items;
    int64_t num_running = 0, num_heavy = 0;  // running
    int64_t mean_us = 0;                     // of its tasks, a moving average
    double budget_seconds = 0;               // left of max_seconds_per_minute
    Clock::time_point refilled;
  };

  struct Running;

  void main();
  void run(Item item, std::unique_lock<std::mutex>& lock);
  static thread_local Running* running_;  // the innermost on this thread
  Lane& lane_of(const std::string& tenant, double weight, Clock::time_point now);
  // What is next and may run; nothing when there is none. `of_others`: of tenants that have none running.
  std::optional<Item> take(bool of_others);
  void finished(Lane& lane, bool heavy, int64_t advance_us, int64_t used_us);
  void refill(Lane& lane, Clock::time_point now) const;
  void forget_idle();

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wanted_;
  std::unordered_map<std::string, std::unique_ptr<Lane>> lanes_;  // by tenant
  std::unordered_map<Id, std::list<Item>::iterator> waiting_;
  CounterGroup order_;               // of lanes that have something waiting
  SharedBound<std::string> places_;  // of waiting tasks, by tenant
  std::optional<Status> refusing_;   // refuse_waiting() was called
  uint64_t round_ = 0;
  Id next_id_ = 0;
  int64_t num_running_ = 0, num_finished_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lk
