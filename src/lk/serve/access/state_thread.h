// SPDX-License-Identifier: Apache-2.0
// StateThread: the server's one thread that waits for the state file. Requests that change stored state hand their work
// over and are answered when it is done; meanwhile they hold no worker, and no completion waits behind them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "lk/base/status.h"

namespace lk {

class StateThread {
 public:
  // `tick` is called on the thread about every `interval`, between changes.
  StateThread(std::function<void()> tick, std::chrono::milliseconds interval);
  ~StateThread() { stop(); }

  // Runs the change with an OK status; with kUnavailable when its turn did not come in time (or the thread stops): then
  // it must change nothing. False when too many wait: it was not taken.
  using Change = std::function<void(const Status& turn)>;
  bool try_post(Change change);
  // Ends the thread; what waits is refused. Once; not from a change.
  void stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    Change change;
    Clock::time_point since;
  };
  void main();

  const std::function<void()> tick_;
  const std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<Waiting> changes_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lk
