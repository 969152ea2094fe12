// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/state_thread.h"

#include <utility>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

// A change takes milliseconds: this many wait only when the file is held by somebody, and then no longer than this.
constexpr size_t kMaxWaiting = 256;
constexpr std::chrono::seconds kLongestWait{5};

}  // namespace

StateThread::StateThread(std::function<void()> tick, std::chrono::milliseconds interval)
    : tick_(std::move(tick)), interval_(interval), thread_([this] { main(); }) {}

bool StateThread::try_post(Change change) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || changes_.size() >= kMaxWaiting) return false;
    changes_.push_back({std::move(change), Clock::now()});
  }
  wanted_.notify_one();
  return true;
}

void StateThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void StateThread::main() {
  set_thread_name("lk-state");
  Clock::time_point next_tick = Clock::now() + interval_;
  for (;;) {
    Waiting next;
    bool stopping = false;
    {
      std::unique_lock lock(mutex_);
      wanted_.wait_until(lock, next_tick, [&] { return stopping_ || !changes_.empty(); });
      stopping = stopping_;
      if (!changes_.empty()) {
        next = std::move(changes_.front());
        changes_.pop_front();
      } else if (stopping) {
        return;
      }
    }
    if (next.change) {
      const bool late = Clock::now() - next.since > kLongestWait;
      const Status turn = stopping ? unavailable("the server is shutting down")
                          : late   ? unavailable("other changes hold up the state file; try again later")
                                   : Status();
      (void)guarded("a change", [&] { next.change(turn); });  // who asked sees to what it throws
      next.change = nullptr;                                  // what it holds goes before the next wait
    }
    if (!stopping && Clock::now() >= next_tick) {
      (void)guarded("a look at the state file", tick_);
      next_tick = Clock::now() + interval_;
    }
  }
}

}  // namespace lk
