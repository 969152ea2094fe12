// SPDX-License-Identifier: Apache-2.0
// Private to scheduler*.cpp: what the scheduler keeps of a request.
#pragma once

#include <utility>
#include <vector>

#include "lk/sched/scheduler.h"

namespace lk {
namespace sched_detail {

inline constexpr int64_t kPageTokens = 16;  // tokens per KV page; kernels/args.h
inline int64_t pages_for(int64_t num_tokens) { return (num_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace sched_detail

struct Scheduler::Sequence : Ticket {
  explicit Sequence(Request owned) : owned(std::move(owned)) { request = &this->owned; }
  Request owned;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t num_computed = 0;     // positions whose K and V are in pages
  std::vector<PageId> pages;    // block table; one reference each
  int64_t num_published = 0;    // leading pages that carry a key
  BlockKey last_key{};          // key of page num_published - 1, or the root
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<double> hidden_sum;
  bool running = false;
  bool started = false;               // was in a step
  int64_t num_billed = 0;             // positions that were computed, or cached, for the first time
  Micros admitted_at = 0;             // latest
  Micros blocked_since = -1;          // for an adapter slot
  std::vector<BlockKey> prompt_keys;  // of its full pages, for locality

  Seniority seniority() const { return {tag, order}; }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_length() const { return static_cast<int64_t>(request->prompt.size()); }
  int64_t num_output() const { return num_tokens() - prompt_length(); }
  bool wants_prompt_logprobs() const { return request->sampling.num_prompt_logprobs >= 0; }
};

}  // namespace lk
