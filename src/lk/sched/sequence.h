// SPDX-License-Identifier: Apache-2.0
// Sequence: a request on its way through the scheduler, from submit() to its last event. There is one such object per
// request: whoever drives the scheduler derives from it, adds what it keeps of the request itself, and gets it back
// with the last event.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "lk/base/page.h"
#include "lk/sched/queue_policy.h"
#include "lk/sched/token_counts.h"

namespace lk {

struct Sequence : Ticket {
  explicit Sequence(Request asked = {}) : asked(std::move(asked)) { request = &this->asked; }
  virtual ~Sequence() = default;
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  Request asked;  // filled by its maker, fixed from submit() on

  // --- The scheduler's own, from submit() on.
  std::vector<int32_t> tokens;           // prompt, then output
  TokenCounts seen;                      // of them, for penalties; empty without
  int64_t num_computed = 0;              // positions whose K and V are in pages
  std::vector<PageId> pages;             // block table; one reference each
  int64_t num_published = 0;             // leading pages that carry a key
  std::vector<BlockKey> keys;            // of its first full pages, as far as somebody asked for them
  std::optional<Activation> activation;  // of its adapter in its prompt; nullopt: the adapter acts everywhere
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<double> hidden_sum;
  bool running = false;
  bool started = false;       // was in a step
  int64_t num_billed = 0;     // positions that were computed, or cached, for the first time
  Micros due = kNoDeadline;   // Scheduler::deadlines_ holds it under this
  Micros admitted_at = -1;    // latest; -1: never
  Micros blocked_since = -1;  // for an adapter slot

  // Room for an answer of a usual length, so that steps need not make it; longer ones grow by doubling.
  void reserve() {
    const int64_t most = prompt_length() + std::min<int64_t>(request->max_tokens, 2048);
    tokens.reserve(static_cast<size_t>(most));
    pages.reserve(static_cast<size_t>(pages_for(most)));
    keys.reserve(static_cast<size_t>(pages_for(most)));
  }
  std::pair<int64_t, uint64_t> seniority() const { return {tag, order}; }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_length() const { return static_cast<int64_t>(request->prompt.size()); }
  int64_t num_output() const { return num_tokens() - prompt_length(); }
  // Whose weights computed the K and V of a page. One that an activation cuts in two is the adapter's.
  AdapterId maker_of(int64_t page) const {
    const bool before = activation && page < activation->from / kPageTokens;
    return before && activation->base_before ? kBaseModel : request->adapter;
  }
  // Requires: its tokens fill the page.
  const BlockKey& key_of(int64_t page) {
    for (auto next = static_cast<int64_t>(keys.size()); next <= page; ++next) {
      const AdapterId first = activation && activation->base_before ? kBaseModel : request->adapter;
      BlockKey parent = next == 0 ? root_block_key(first, request->cache_salt) : keys.back();
      if (activation && next == activation->from / kPageTokens)
        parent = activated_block_key(parent, request->adapter, activation->from);
      keys.push_back(child_block_key(
          parent, std::span<const int32_t>(tokens).subspan(static_cast<size_t>(next * kPageTokens), kPageTokens)));
    }
    return keys[static_cast<size_t>(page)];
  }
  // Of the prompt, and not had yet: a resumed one has had both.
  bool wants_prompt_logprobs() const { return request->sampling.num_prompt_logprobs >= 0 && num_output() == 0; }
  bool wants_hidden_sum() const { return request->pooling != Pooling::kNone && num_output() == 0; }
};

// What happened to a request in one step.
struct RequestEvent {
  RequestId id = 0;
  Sequence* sequence = nullptr;  // until its next event
  bool started = false;  // once: its first tokens were computed in this step (again after nothing but a preemption: no)
  int64_t cached_tokens = 0;  // with started: prompt tokens taken from the prefix cache
  bool has_token = false;
  TokenLogprob token;
  std::vector<TokenLogprob> prompt_logprobs;  // once, when the prompt is done; entry i is prompt token i + 1
  std::vector<double> hidden_sum;             // likewise, [hidden_dim], with Request::pooling
  FinishReason finish = FinishReason::kNone;
  Status error;                     // with kError
  std::unique_ptr<Sequence> ended;  // with the last event: the scheduler has let go of `sequence`
};

}  // namespace lk
