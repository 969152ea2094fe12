// SPDX-License-Identifier: Apache-2.0
// Private to scheduler*.cpp: what the scheduler keeps of a request.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "lk/base/page.h"
#include "lk/sched/scheduler.h"
#include "lk/sched/token_counts.h"

namespace lk {
struct Scheduler::Sequence : Ticket {
  explicit Sequence(Request owned) : owned(std::move(owned)) { request = &this->owned; }
  Request owned;
  std::vector<int32_t> tokens;  // prompt, then output
  TokenCounts seen;             // of them, for penalties; empty without
  int64_t num_computed = 0;     // positions whose K and V are in pages
  std::vector<PageId> pages;    // block table; one reference each
  int64_t num_published = 0;    // leading pages that carry a key
  std::vector<BlockKey> keys;   // of its first full pages, as far as somebody asked for them
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<double> hidden_sum;
  bool running = false;
  bool started = false;       // was in a step
  int64_t num_billed = 0;     // positions that were computed, or cached, for the first time
  Micros admitted_at = 0;     // latest
  Micros blocked_since = -1;  // for an adapter slot

  // Room for an answer of a usual length, so that steps need not make it; longer ones grow by doubling.
  void reserve() {
    const int64_t most = prompt_length() + std::min<int64_t>(request->max_tokens, 2048);
    tokens.reserve(static_cast<size_t>(most));
    pages.reserve(static_cast<size_t>(pages_for(most)));
    keys.reserve(static_cast<size_t>(pages_for(most)));
  }
  Seniority seniority() const { return {tag, order}; }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_length() const { return static_cast<int64_t>(request->prompt.size()); }
  int64_t num_output() const { return num_tokens() - prompt_length(); }
  // Requires: its tokens fill the page.
  const BlockKey& key_of(int64_t page) {
    for (auto next = static_cast<int64_t>(keys.size()); next <= page; ++next)
      keys.push_back(child_block_key(
          next == 0 ? root_block_key(request->adapter, request->cache_salt) : keys.back(),
          std::span<const int32_t>(tokens).subspan(static_cast<size_t>(next * kPageTokens), kPageTokens)));
    return keys[static_cast<size_t>(page)];
  }
  bool wants_prompt_logprobs() const { return request->sampling.num_prompt_logprobs >= 0; }
};

}  // namespace lk
