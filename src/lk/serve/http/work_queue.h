// SPDX-License-Identifier: Apache-2.0
// WorkQueue: a few threads for what would hold up an io thread: parsing, templates, tokenizing, compiling grammars.
// Bounded.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"

namespace lk {

class WorkQueue {
 public:
  WorkQueue(int num_threads, size_t max_waiting) : max_waiting_(max_waiting) {
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { main(); });
  }
  ~WorkQueue() { stop(); }

  // False when the queue is full or stopped; the task was not taken then.
  bool try_post(std::function<void()> task) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_ || tasks_.size() >= max_waiting_) return false;
      tasks_.push_back(std::move(task));
    }
    wanted_.notify_one();
    return true;
  }
  // Runs what is queued and ends the threads. Once; not from a task.
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_)
      if (thread.joinable()) thread.join();
  }

 private:
  void main() {
    set_thread_name("lk-worker");
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        wanted_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      (void)guarded("a task", task);  // who gave it sees to what it throws; the thread goes on in any case
    }
  }

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lk
