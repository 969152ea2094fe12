// SPDX-License-Identifier: Apache-2.0
// RankTeam: the ranks of a model in this process, each with its part of the weights, a back-end, an arena of pages and
// a decoder; and the threads that run the same forward pass on all of them (docs/design/tensor_parallel.md). One rank
// is the whole model, and has no thread but the caller's.
//
// Thread safety: engine thread only, as rank 0.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "lk/base/barrier.h"
#include "lk/engine/rank_memory.h"
#include "lk/model/decoder.h"

namespace lk {

class RankTeam {
 public:
  struct Setup {
    std::shared_ptr<const ModelWeights> weights;
    std::unique_ptr<Backend> backend;
  };
  // Requires: the ranks' weights in their order, all of one model. Rank 0 alone has the head, and rows of logits.
  RankTeam(std::vector<Setup> setups, int64_t max_step_tokens, int64_t max_logit_rows);
  ~RankTeam();

  struct Rank {
    std::shared_ptr<const ModelWeights> weights;
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Collective> collective;  // null: the only one
    std::unique_ptr<Decoder> decoder;
    DeviceBuffer arena;
  };
  int size() const { return static_cast<int>(ranks_.size()); }
  Rank& operator[](size_t rank) { return ranks_[rank]; }
  const Rank& operator[](size_t rank) const { return ranks_[rank]; }
  // An arena of so many pages on every rank.
  Status allocate(int64_t num_pages);
  std::vector<RankMemory> memory();

  // f(rank) for every rank, each on a thread of its own, 0 on this one. Returns when all have. An exception ends the
  // process: the others would wait for that rank for ever.
  void run(const std::function<void(size_t)>& f);

 private:
  void work(size_t rank);

  std::vector<Rank> ranks_;
  Barrier begin_, end_;
  const std::function<void(size_t)>* job_ = nullptr;  // null: end
  std::vector<std::thread> threads_;
};

}  // namespace lk
