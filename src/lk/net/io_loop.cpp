// SPDX-License-Identifier: Apache-2.0
#include "lk/net/io_loop.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdio>
#include <ctime>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "lk/base/check.h"

namespace lk {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr auto kLongestBatch = std::chrono::milliseconds(1);  // of posted tasks, before sockets get their turn

double thread_cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

void run_guarded(const char* what, const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "lorikeet: exception in %s: %s\n", what, e.what());
  } catch (...) {
    std::fprintf(stderr, "lorikeet: exception in %s\n", what);
  }
}

struct IoLoop::Impl {
  Impl(std::function<void()> epilogue, std::function<void(const IoTurn&)> observe)
      : epilogue(std::move(epilogue)), observe(std::move(observe)) {}

  asio::io_context io{1};  // one thread runs it
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  std::function<void()> epilogue;
  std::function<void(const IoTurn&)> observe;
  std::atomic<std::thread::id> thread{};
  std::vector<std::shared_ptr<asio::steady_timer>> timers;
  bool finishing = false;

  std::mutex mutex;
  std::vector<std::function<void()>> tasks;  // guarded by mutex
  bool scheduled = false;                    // guarded by mutex: run_tasks() will come
  bool finished = false;                     // guarded by mutex
  std::vector<std::function<void()>> batch;  // reused
  size_t next_task = 0;                      // of the batch

  // One callback, measured. What `f` throws is its own.
  template <class F>
  void turn(F f) {
    const auto begin = std::chrono::steady_clock::now();
    const double cpu = observe ? thread_cpu_seconds() : 0;
    f();
    run_guarded("a flush", epilogue);
    if (!observe) return;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    run_guarded("a measurement",
                [&] { observe({.seconds = elapsed.count(), .cpu_seconds = thread_cpu_seconds() - cpu}); });
  }
  void call(const char* what, const std::function<void()>& f) {
    turn([&] { run_guarded(what, f); });
  }
  void run_tasks() {
    if (next_task == batch.size()) {
      batch.clear();
      next_task = 0;
      const std::lock_guard lock(mutex);
      batch.swap(tasks);
    }
    turn([&] {
      const auto end = std::chrono::steady_clock::now() + kLongestBatch;
      while (next_task < batch.size()) {
        run_guarded("a posted task", batch[next_task]);
        batch[next_task++] = nullptr;
        if (std::chrono::steady_clock::now() > end) break;
      }
    });
    const std::lock_guard lock(mutex);
    scheduled = next_task < batch.size() || !tasks.empty();
    if (scheduled) schedule();
  }
  void schedule() {
    asio::post(io, [this] { run_tasks(); });
  }
  void wait(std::shared_ptr<asio::steady_timer> timer, std::chrono::milliseconds period, bool repeat,
            std::function<void()> f) {
    timer->expires_after(period);
    auto& t = *timer;
    t.async_wait([this, timer = std::move(timer), period, repeat, f = std::move(f)](error_code ec) mutable {
      if (ec || finishing) return;
      call("a timer", f);
      if (repeat && !finishing) {
        wait(std::move(timer), period, true, std::move(f));
      } else {
        std::erase(timers, timer);
      }
    });
  }
  void add_timer(std::chrono::milliseconds period, bool repeat, std::function<void()> f) {
    if (finishing) return;
    timers.push_back(std::make_shared<asio::steady_timer>(io));
    wait(timers.back(), period, repeat, std::move(f));
  }
};

IoLoop::IoLoop(std::function<void()> epilogue, std::function<void(const IoTurn& turn)> observe)
    : impl_(std::make_unique<Impl>(std::move(epilogue), std::move(observe))) {}
IoLoop::~IoLoop() = default;

void IoLoop::run() {
  impl_->thread = std::this_thread::get_id();
  impl_->io.run();
  // Posts that came between the last batch and finish(): their captures may own what owns this loop.
  std::vector<std::function<void()>> left;
  {
    const std::lock_guard lock(impl_->mutex);
    LK_CHECK(impl_->finished);
    left.swap(impl_->tasks);
  }
}

bool IoLoop::in_loop() const { return impl_->thread.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

bool IoLoop::post(std::function<void()> task) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->finished) return false;
  impl_->tasks.push_back(std::move(task));
  if (!std::exchange(impl_->scheduled, true)) impl_->schedule();
  return true;
}

void IoLoop::every(std::chrono::milliseconds period, std::function<void()> tick) {
  impl_->add_timer(period, true, std::move(tick));
}
void IoLoop::after(std::chrono::milliseconds delay, std::function<void()> f) {
  impl_->add_timer(delay, false, std::move(f));
}

void IoLoop::finish() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->finished = true;
  }
  impl_->finishing = true;
  for (auto& timer : impl_->timers) timer->cancel();
  impl_->timers.clear();
  impl_->work.reset();
}

struct IoWatch::Impl {
  Impl(IoLoop::Impl& loop, int fd) : loop(loop), descriptor(loop.io, fd) {}
  IoLoop::Impl& loop;
  asio::posix::stream_descriptor descriptor;

  void wait(asio::posix::descriptor_base::wait_type type, std::function<void()> callback) {
    descriptor.async_wait(type, [&loop = loop, callback = std::move(callback)](error_code ec) {
      // Cancelled by close(), or the descriptor is in error: the owner sees the latter from its own read or write.
      if (ec == asio::error::operation_aborted) return;
      loop.call("a socket callback", callback);
    });
  }
};

IoWatch::IoWatch(IoLoop& loop, int fd) : impl_(std::make_unique<Impl>(*loop.impl_, fd)) {}
IoWatch::~IoWatch() = default;
int IoWatch::fd() const { return impl_->descriptor.is_open() ? impl_->descriptor.native_handle() : -1; }
void IoWatch::when_readable(std::function<void()> callback) {
  impl_->wait(asio::posix::descriptor_base::wait_read, std::move(callback));
}
void IoWatch::when_writable(std::function<void()> callback) {
  impl_->wait(asio::posix::descriptor_base::wait_write, std::move(callback));
}
void IoWatch::close() {
  error_code ignored;
  impl_->descriptor.close(ignored);
}

}  // namespace lk
