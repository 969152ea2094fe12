// SPDX-License-Identifier: Apache-2.0
#include "lk/base/barrier.h"

#include <chrono>
#include <thread>

#include "lk/base/cpu_relax.h"

namespace lk {
namespace {

constexpr int kSpins = 4000;
constexpr auto kYieldTime = std::chrono::milliseconds(1);

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);  // it cannot end without us
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);  // nobody arrives again before the round has ended
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  const auto ended = [&] { return round_.load(std::memory_order_acquire) != round; };
  for (int i = 0; i < kSpins; ++i) {
    if (ended()) return;
    cpu_relax();
  }
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < kYieldTime) {
    if (ended()) return;
    std::this_thread::yield();
  }
  round_.wait(round, std::memory_order_acquire);
}

}  // namespace lk
