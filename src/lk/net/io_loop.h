// SPDX-License-Identifier: Apache-2.0
// IoLoop: one thread's event loop, and IoWatch: one descriptor in it. A thin wall around Boost.Asio: only io_loop.cpp
// includes it.
//
// Sockets are read and written by their owner when they are ready, so that an idle connection needs no buffer of its
// own.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace lk {

// How long the loop was kept by one callback.
struct IoTurn {
  double seconds = 0;      // by the clock: what everybody else in the loop waited
  double cpu_seconds = 0;  // of these at work, as opposed to waiting for a core or for anything else
};

class IoLoop {
 public:
  // `epilogue` runs after every callback. Posted tasks run in batches that count as one callback, until they have taken
  // a millisecond: then sockets and timers get their turn. `observe` (may be empty) hears of every callback.
  explicit IoLoop(std::function<void()> epilogue, std::function<void(const IoTurn& turn)> observe = {});
  ~IoLoop();
  IoLoop(const IoLoop&) = delete;
  IoLoop& operator=(const IoLoop&) = delete;

  void run();  // until finish() was called and every watch is closed
  bool in_loop() const;
  // Thread safe. Tasks run in the order of their posts. False (and the task dropped) after finish().
  bool post(std::function<void()> task);

  // In the loop, or before run().
  void every(std::chrono::milliseconds period, std::function<void()> tick);
  void after(std::chrono::milliseconds delay, std::function<void()> callback);
  void finish();  // no more posts and timers

 private:
  friend class IoWatch;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Owns a non-blocking descriptor. Loop thread only, except for the destructor once close() was called.
class IoWatch {
 public:
  IoWatch(IoLoop& loop, int fd);
  ~IoWatch();
  int fd() const;  // -1 after close()
  // `callback` is called once when the descriptor is ready; after close() only if it was on its way already.
  void when_readable(std::function<void()> callback);
  void when_writable(std::function<void()> callback);
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `f`; an exception is reported on stderr and swallowed: one faulty callback must not end the loop.
void run_guarded(const char* what, const std::function<void()>& f);

}  // namespace lk
