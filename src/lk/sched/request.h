// SPDX-License-Identifier: Apache-2.0
// What the scheduler knows of a request: token ids, an adapter version, how to sample, when to stop. No text.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lk/base/status.h"
#include "lk/memory/unified_pool.h"

namespace lk {

using RequestId = int64_t;
using TenantId = int64_t;  // the server's number of an account; 0 = nobody in particular
using Micros = int64_t;    // a point in time or a duration; the executor's clock counts them
inline constexpr Micros kNoDeadline = std::numeric_limits<Micros>::max();

struct SamplingParams {
  double temperature = 1.0;         // 0 = greedy
  int64_t top_k = 0;                // 0 = off
  double top_p = 1.0;               // (0, 1]
  double min_p = 0.0;               // [0, 1]
  double repetition_penalty = 1.0;  // > 0; over prompt and output (arXiv:1909.05858)
  double presence_penalty = 0.0;    // over the output only, as in OpenAI's API
  double frequency_penalty = 0.0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
  int num_logprobs = -1;         // -1 = none, 0 = the token's own, n = and the n most likely
  int num_prompt_logprobs = -1;  // likewise for prompt tokens after the first

  bool has_penalties() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// Which tokens may come next: a grammar, an allow-list. One per request; it advances with the request's tokens and
// never sees anything else. Called from any one thread at a time. An error ends the request.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets bit t % 64 of words[t / 64] to whether token t may come next. [ceil(vocab_size / 64)]
  virtual Status allowed(std::span<uint64_t> words) = 0;
  // Called with each token of the output, once.
  virtual Status accept(int32_t token) = 0;
};

// Which hidden states of a prompt make its embedding: the sum of all (their mean but for the length), the last token's,
// or the first token's.
enum class Pooling : uint8_t { kNone, kMean, kLast, kFirst };

// Activated LoRA (arXiv:2504.12397): the adapter's deltas act from the position on where its invocation tokens begin in
// the prompt for the last time, and on all output after it.
struct Activation {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  int64_t from = kNever;  // the first position with deltas
  // What comes before is computed as the base computes it: its KV pages are shared with the base, and with other such
  // adapters. False: the adapter also replaces weights of the base, and these act everywhere.
  bool base_before = true;
};

struct Request {
  RequestId id = 0;
  AdapterId adapter = kBaseModel;
  TenantId tenant = 0;   // who pays
  int64_t user = 0;      // whom the tenant serves with it; 0 = nobody in particular
  int64_t priority = 0;  // of the tenant's own that wait, lower ones are next
  // Of the first token; the earlier one of this and the scheduler's SLO holds.
  Micros deadline = kNoDeadline;
  Micros expires = kNoDeadline;  // it ends then with kDeadlineExceeded, wherever it is
  std::vector<int32_t> prompt;   // >= 1 token
  // Output that was made elsewhere, fewer than max_tokens and none of them a stop token: the request goes on after it,
  // with exactly the tokens that it would have had there. Its constraint has accepted them.
  std::vector<int32_t> output_so_far;
  int64_t max_tokens = 16;  // 0 = only score the prompt
  std::vector<int32_t> stop_token_ids;
  SamplingParams sampling;
  // Requests share cached KV pages only when their salts are equal: a tenant, a rope length.
  uint64_t cache_salt = 0;
  std::shared_ptr<TokenConstraint> constraint;  // or null
  bool urgent = false;  // before everything that waits: the server's own probes, never a client's
  // Also return what the prompt's last hidden states (after the final norm) come to; disables prefix reuse for this
  // request.
  Pooling pooling = Pooling::kNone;
  // Sequence length that length-dependent rope scaling assumes (rope types dynamic and longrope).
  int64_t rope_length = 0;

  bool resumed() const { return !output_so_far.empty(); }
  // What it may come to: its place in queues and budgets. Of a resumed one the rest was counted where it was made.
  int64_t reserved_tokens() const { return reserved_tokens(static_cast<int64_t>(output_so_far.size())); }
  // The same if so much of it had been made elsewhere.
  int64_t reserved_tokens(int64_t tokens_so_far) const {
    return max_tokens + (tokens_so_far > 0 ? -tokens_so_far : static_cast<int64_t>(prompt.size()));
  }
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };
const char* to_string(FinishReason reason);

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;                           // of the model's raw distribution
  int64_t rank = 0;                            // 1 = most likely
  std::vector<std::pair<int32_t, float>> top;  // most likely first
};

}  // namespace lk
