// SPDX-License-Identifier: Apache-2.0
#include "lk/base/thread_pool.h"

#include <sched.h>

#include "lk/base/check.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// ~100 us of spinning covers the serial gaps between the kernels of one step.
constexpr int kSpinIterations = 20000;

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
  pending_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  fn(ctx, 0);
  for (int spins = 0; pending_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpinIterations) cpu_relax();
    else std::this_thread::yield();
  }
}

void ThreadPool::worker(int thread_idx) {
  set_thread_name("lk-kernel");
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpinIterations) cpu_relax();
      else generation_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (stop_) return;
    fn_(ctx_, thread_idx);
    pending_.fetch_sub(1, std::memory_order_release);
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
