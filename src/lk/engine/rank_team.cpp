// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/rank_team.h"

#include "lk/base/thread_name.h"
#include "lk/ops/local_collective.h"

namespace lk {
namespace {

void run_or_end(const std::function<void(size_t)>& f, size_t rank) noexcept { f(rank); }

}  // namespace

RankTeam::RankTeam(std::vector<Setup> setups, int64_t max_step_tokens, int64_t max_logit_rows)
    : begin_(static_cast<int>(setups.size())), end_(static_cast<int>(setups.size())) {
  const auto size = static_cast<int>(setups.size());
  std::vector<std::unique_ptr<Collective>> ends(setups.size());
  if (size > 1) ends = make_local_collectives(size);
  for (size_t r = 0; r < setups.size(); ++r) {
    Rank& rank = ranks_.emplace_back();
    rank.weights = std::move(setups[r].weights);
    rank.backend = std::move(setups[r].backend);
    rank.collective = std::move(ends[r]);
    LK_CHECK(rank.weights->rank.rank == static_cast<int>(r) && rank.weights->rank.size == size);
    rank.decoder = std::make_unique<Decoder>(rank.weights, *rank.backend, max_step_tokens, r == 0 ? max_logit_rows : 0,
                                             rank.collective.get());
  }
  for (size_t r = 1; r < ranks_.size(); ++r) threads_.emplace_back([this, r] { work(r); });
}

RankTeam::~RankTeam() {
  if (threads_.empty()) return;
  job_ = nullptr;
  begin_.wait();
  for (std::thread& thread : threads_) thread.join();
}

Status RankTeam::allocate(int64_t num_pages) {
  for (Rank& rank : ranks_) {
    LK_ASSIGN_OR_RETURN(rank.arena, rank.backend->try_allocate(num_pages * rank.decoder->page_bytes()));
    rank.decoder->set_pool(rank.arena.data());
  }
  return Status();
}

std::vector<RankMemory> RankTeam::memory() {
  std::vector<RankMemory> memory;
  for (Rank& rank : ranks_)
    memory.push_back({.weights = rank.weights, .backend = rank.backend.get(), .pool_base = rank.arena.data()});
  return memory;
}

void RankTeam::run(const std::function<void(size_t)>& f) {
  if (threads_.empty()) return f(0);
  job_ = &f;
  begin_.wait();
  run_or_end(f, 0);
  end_.wait();
}

void RankTeam::work(size_t rank) {
  set_thread_name("lk-rank");
  for (;;) {
    begin_.wait();
    if (!job_) return;
    run_or_end(*job_, rank);
    end_.wait();
  }
}

}  // namespace lk
