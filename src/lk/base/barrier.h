// SPDX-License-Identifier: Apache-2.0
// Barrier: where a fixed number of threads wait for each other, again and again.
#pragma once

#include <atomic>
#include <cstdint>

namespace lk {

class Barrier {
 public:
  explicit Barrier(int size) : size_(static_cast<uint32_t>(size)) {}
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Returns when all have called it. What each wrote before is seen by all afterwards. They come within microseconds
  // when each has a core of its own, so it first spins, then gives its core to others, and sleeps when it gets long.
  void wait();

 private:
  const uint32_t size_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

}  // namespace lk
