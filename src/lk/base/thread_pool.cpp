// SPDX-License-Identifier: Apache-2.0
#include "lk/base/thread_pool.h"

#include <sched.h>

#include <chrono>

#include "lk/base/check.h"
#include "lk/base/cpu_relax.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

// Covers the serial gaps between the kernels of one step; longer would take the core from somebody who has work.
constexpr auto kSpinTime = std::chrono::microseconds(100);

// False once kSpinTime has passed without `done`.
template <class F>
bool spin_until(const F& done) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() - begin < kSpinTime);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  LK_CHECK(num_threads >= 1);
  for (int thread_idx = 1; thread_idx < num_threads; ++thread_idx)
    threads_.emplace_back([this, thread_idx] { worker(thread_idx); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_raw(RawFn fn, void* ctx) {
  if (num_threads_ == 1) return fn(ctx, 0);
  fn_ = fn;
  ctx_ = ctx;
  active_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  fn(ctx, 0);
  active_.fetch_and(~kOpen, std::memory_order_relaxed);
  const auto done = [&] { return active_.load(std::memory_order_acquire) == 0; };
  while (!spin_until(done)) std::this_thread::yield();
}

void ThreadPool::worker(int thread_idx) {
  set_thread_name("lk-kernel");
  uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(changed)) generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    // Entering and closing are changes of one word: a run that still waits for us has not ended, one that does not is
    // closed.
    uint32_t active = active_.load(std::memory_order_relaxed);
    while ((active & kOpen) != 0 &&
           !active_.compare_exchange_weak(active, active + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
    }
    if ((active & kOpen) == 0) continue;
    fn_(ctx_, thread_idx);
    active_.fetch_sub(1, std::memory_order_release);
  }
}

int default_num_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int count = CPU_COUNT(&set);
    if (count >= 1) return count;
  }
  return 1;
}

}  // namespace lk
