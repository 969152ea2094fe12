// SPDX-License-Identifier: Apache-2.0
// How long an answer may become, from what was asked for: known before anything is computed.
#pragma once

#include <cstdint>

#include "lk/serve/openai/openai.h"

namespace lk {

// In bytes, with tokens of usual length. Answers of unusual tokens may be somewhat longer; AnswerFormatter::response()
// has the last word.
struct AnswerSize {
  int64_t fixed = 0;      // what is shown of the prompt, and the frame
  int64_t per_token = 0;  // what one more output token of each choice would add
  // What it is made of, in memory: the echoed text and the log-probabilities of the prompt, and those of one more
  // output token of each choice. Streams hold them, too, until they end.
  int64_t held_fixed = 0, held_per_token = 0;
  int64_t bytes(int64_t max_tokens) const;
  int64_t held_bytes(int64_t max_tokens) const;
  int64_t tokens_that_fit(int64_t max_bytes, int64_t max_held) const;  // of each choice
};

// All choices of one prompt, which has so many tokens and bytes. Of a stream only what is shown of the prompt counts:
// the rest is not held.
AnswerSize answer_size(const GenerateRequest& request, const TextRequest& prompt, int64_t prompt_tokens,
                       int64_t prompt_bytes);

int64_t embeddings_size(const EmbeddingRequest& request, int64_t dimensions);
int64_t tokenize_size(const TokenizeRequest& request, int64_t num_tokens, int64_t prompt_bytes);

// About what this much of an answer takes in it, if everything is shown.
int64_t shown_bytes(const Completion& completion);

// The refusal of an answer that would be too long.
ApiError answer_too_large(int64_t bytes, int64_t max_bytes, std::string_view remedy, std::string_view param = {});

}  // namespace lk
