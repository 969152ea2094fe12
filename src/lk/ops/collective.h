// SPDX-License-Identifier: Apache-2.0
// Collective: how the ranks of a model add up what each has a part of (docs/design/tensor_parallel.md). Pointers are
// device addresses.
#pragma once

#include <cstdint>
#include <span>

#include "lk/base/thread_pool.h"

namespace lk {

// Rows to be summed: sum[m, j] = part[m, j] of all ranks, added in a binary tree, ((r0 + r1) + (r2 + r3)) + ...: every
// rank gets the same bits, and those of one rank that adds up all shards (kernels/args.h, can_shard()).
struct RankSum {
  const float* part = nullptr;  // f32 [num_rows, n], of this rank
  int64_t part_stride = 0;
  float* sum = nullptr;  // f32 [num_rows, n]; memory of this rank's that is no part
  int64_t sum_stride = 0;
  int64_t num_rows = 0, n = 0;
};

// One rank's end of it. Every rank makes the same calls in the same order, with equal sizes.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;  // a power of two

  // All of `sums` at once; `threads` add up. Waits for the slowest rank. The parts may be written again once this
  // rank's next sum() has returned: whoever calls it uses two buffers in turn.
  void sum(std::span<const RankSum> sums, ThreadPool& threads) {
    ++num_sums_;
    do_sum(sums, threads);
  }
  int64_t num_sums() const { return num_sums_; }  // calls so far

 private:
  virtual void do_sum(std::span<const RankSum> sums, ThreadPool& threads) = 0;
  int64_t num_sums_ = 0;
};

}  // namespace lk
