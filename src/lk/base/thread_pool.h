// SPDX-License-Identifier: Apache-2.0
// ThreadPool: the kernel threads of one engine. run(f) offers f to every thread and returns when all that took it are
// done. The caller is thread 0 and always takes it; a worker that comes late, because its core is busy with something
// else, finds the run closed and is not waited for. So f must share its work dynamically: whoever comes takes what is
// left. Workers spin briefly between runs (a step makes hundreds), then sleep on a futex.
//
// Thread safety: run() from one thread at a time (the engine thread).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace lk {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // >= 1; the calling thread counts as one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // F: void(int thread_idx), by thread 0 once, by others perhaps (a fast one may come again). Must not throw and not
  // call run() again.
  template <class F>
  void run(F&& f) {
    run_raw([](void* ctx, int thread_idx) { (*static_cast<std::remove_reference_t<F>*>(ctx))(thread_idx); }, &f);
  }

  // Calls f(item) for every item in [0, num_items): each thread takes the next free item, so a disturbed
  // core does less. Which thread computes an item never changes its value.
  template <class F>
  void for_each(int64_t num_items, F&& f) {
    if (num_items <= 0) return;
    if (num_items == 1 || num_threads_ == 1) {
      for (int64_t item = 0; item < num_items; ++item) f(item);
      return;
    }
    std::atomic<int64_t> next{0};
    run([&](int) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) f(item);
    });
  }

 private:
  static constexpr uint32_t kOpen = 1u << 31;  // of active_
  using RawFn = void (*)(void* ctx, int thread_idx);
  void run_raw(RawFn fn, void* ctx);
  void worker(int thread_idx);

  const int num_threads_;
  std::vector<std::thread> threads_;
  alignas(64) std::atomic<uint32_t> generation_{0};  // bumped for each run(); workers wait for a change
  alignas(64) std::atomic<uint32_t> active_{0};      // workers inside the current run; kOpen while more may enter
  RawFn fn_ = nullptr;  // of the current run: written before it opens, read by those who entered
  void* ctx_ = nullptr;
  std::atomic<bool> stop_{false};
};

// Threads to use by default: what the affinity mask allows.
int default_num_threads();

}  // namespace lk
