// SPDX-License-Identifier: Apache-2.0
// Sampler: one token from one row of logits. What it draws depends on the row, the request's parameters, its tokens so
// far and its seed; never on the batch.
#pragma once

#include <span>
#include <vector>

#include "lk/ops/backend.h"
#include "lk/sched/request.h"

namespace lk {

// Log-probability of `token` under the raw logits, its rank, and the `num_top` most likely tokens.
TokenLogprob token_logprob(const float* logits, int64_t vocab_size, int32_t token, int num_top, const Backend& backend);

// Order of operations as in vLLM: bias, repetition / presence / frequency penalties, constraint (may be null), then
// greedy or temperature, top-k, top-p, min-p. `logits` is overwritten. `tokens` is prompt and output so far,
// `prompt_length` of them prompt. Ties go to the lowest id.
TokenLogprob sample_token(float* logits, int64_t vocab_size, const SamplingParams& params,
                          std::span<const int32_t> tokens, int64_t prompt_length, TokenConstraint* constraint,
                          const Backend& backend);

}  // namespace lk
