// SPDX-License-Identifier: Apache-2.0
// Logprobs in the shapes of the two endpoints, and how tokens are written in them.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <vector>

#include "lk/serve/openai/openai.h"

namespace lk::openai {

// Names tokens. The tokenizer may be null.
struct TokenNames {
  const Tokenizer* tokenizer = nullptr;
  bool as_ids = false;                                    // "token_id:123"
  bool skip_special_tokens = true;                        // special tokens add nothing to the text
  size_t max_bytes = std::numeric_limits<size_t>::max();  // lists end when what they are appended to is longer

  std::string bytes(int32_t token) const;  // that the token adds to a text; of a special token its name
  // `bytes` as a string: bytes that are not whole characters are escaped, \xe2\x82, in completions after "bytes:".
  std::string name(int32_t token, Endpoint endpoint) const;
  int64_t num_characters(int32_t token) const;  // that begin in the token
};

// [{"token", "logprob", "bytes", "top_logprobs"}, ...], the content of a chat answer's logprobs.
void append_chat_logprobs(std::string& out, std::span<const TokenLogprob> tokens, const TokenNames& names);

// {"text_offset", "token_logprobs", "tokens", "top_logprobs"}. `first_is_prompt`: the first token has no logprob (it
// starts the prompt). `offset` is where the first token begins in the text, in characters, and is moved behind the
// last.
void append_completion_logprobs(std::string& out, std::span<const TokenLogprob> tokens, bool first_is_prompt,
                                int64_t& offset, const TokenNames& names);

// vLLM's prompt_logprobs: [null, {"123": {"logprob", "rank", "decoded_token"}, ...}, ...]
void append_prompt_logprobs(std::string& out, std::span<const TokenLogprob> tokens, const TokenNames& names);

}  // namespace lk::openai
