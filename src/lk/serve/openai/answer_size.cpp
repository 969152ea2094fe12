// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/answer_size.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "lk/base/bytes.h"

namespace lk {
namespace {

// Of JSON, measured on answers of the usual kind. Text may be escaped: a sixth more.
constexpr int64_t kFrame = 1024;             // around all choices
constexpr int64_t kChoice = 256;             // around one
constexpr int64_t kTokenText = 8;            // a usual token's bytes, escaped
constexpr int64_t kTokenId = 7;              // "123456,"
constexpr int64_t kChatEntry = 64 + 5 * 8;   // {"token":"…","logprob":-12.345678,"bytes":[…]}
constexpr int64_t kChatList = 24;            // "top_logprobs":[]
constexpr int64_t kCompletionToken = 48;     // its place in the four lists
constexpr int64_t kCompletionEntry = 32;     // "…":-12.345678
constexpr int64_t kPromptEntry = 72;         // "12345":{"logprob":-12.345678,"rank":12,"decoded_token":"…"}
constexpr int64_t kFloat = 14;               // -0.012345678,
constexpr int64_t kBase64Float = 6;          // 4 bytes as 5.33 characters
constexpr int64_t kMost = int64_t{1} << 50;  // products stay in range

int64_t times(int64_t a, int64_t b) { return a > 0 && b > kMost / a ? kMost : a * b; }

// A token's log-probability and its alternatives in memory; the latter are a block of their own.
int64_t record_bytes(int64_t alternatives) {
  return static_cast<int64_t>(sizeof(TokenLogprob)) +
         (alternatives > 0 ? 16 + times(sizeof(std::pair<int32_t, float>), alternatives) : 0);
}

}  // namespace

int64_t AnswerSize::bytes(int64_t max_tokens) const { return std::min(kMost, fixed + times(per_token, max_tokens)); }

int64_t AnswerSize::held_bytes(int64_t max_tokens) const {
  return std::min(kMost, held_fixed + times(held_per_token, max_tokens));
}

int64_t AnswerSize::tokens_that_fit(int64_t max_bytes, int64_t max_held) const {
  int64_t fit = std::numeric_limits<int32_t>::max();
  if (per_token > 0) fit = std::min(fit, (max_bytes - fixed) / per_token);
  if (held_per_token > 0) fit = std::min(fit, (max_held - held_fixed) / held_per_token);
  return std::max<int64_t>(0, fit);
}

AnswerSize answer_size(const GenerateRequest& request, const TextRequest& prompt, int64_t prompt_tokens,
                       int64_t prompt_bytes) {
  const bool chat = is_chat(request.endpoint);
  const int64_t alternatives = std::max(0, prompt.sampling.num_logprobs);
  const int64_t logprobs = !request.logprobs ? 0
                           : chat            ? kChatList + times(kChatEntry, 1 + alternatives)
                                             : kCompletionToken + times(kCompletionEntry, 1 + alternatives);
  int64_t fixed = kChoice;
  if (request.echo) fixed += prompt_bytes + prompt_bytes / 6;
  if (request.echo && !chat) fixed += times(logprobs, prompt_tokens);
  int64_t extras = request.return_token_ids ? times(kTokenId, prompt_tokens) : 0;
  if (request.prompt_logprobs)
    extras += times(times(kPromptEntry, 1 + std::max(0, prompt.sampling.num_prompt_logprobs)), prompt_tokens);
  // Thoughts are shown under two names.
  const int64_t text = request.reasoning != ReasoningFormat::kNone ? 2 * kTokenText : kTokenText;
  // A chat's choices share what is said of the prompt, unless they are streamed.
  const bool shared = chat && !request.stream;
  AnswerSize size{.fixed = times(request.n, shared ? fixed : fixed + extras) + (shared ? extras : 0)};
  if (!request.stream) size.per_token = times(request.n, text + logprobs + (request.return_token_ids ? kTokenId : 0));
  if (request.endpoint == Endpoint::kResponses) {
    // The first and last events of a stream show the request and the whole answer, in part several times.
    const int64_t times_said = std::ssize(request.repeated);
    size.fixed += times(request.stream ? 3 : 1, times_said);
    if (request.stream) size.per_token = times(4, text + logprobs);
    size.held_fixed = times_said;  // as long as the request waits
  }
  if (request.echo) size.held_fixed += prompt_bytes;
  if (request.logprobs) size.held_per_token = times(request.n, record_bytes(alternatives));
  if (const int of_prompt = prompt.sampling.num_prompt_logprobs; of_prompt >= 0)
    size.held_fixed += times(request.n, times(record_bytes(of_prompt), prompt_tokens));
  return size;
}

int64_t shown_bytes(const Completion& completion) {
  const auto logprobs = [](const std::vector<TokenLogprob>& tokens) {
    int64_t entries = 0;
    for (const TokenLogprob& token : tokens) entries += 1 + std::ssize(token.top);
    return kPromptEntry * entries;
  };
  return std::ssize(completion.text) + 2 * std::ssize(completion.reasoning) +
         kTokenId * (std::ssize(completion.token_ids) + std::ssize(completion.prompt_token_ids)) +
         logprobs(completion.logprobs) + logprobs(completion.prompt_logprobs) +
         kFloat * std::ssize(completion.embedding);
}

int64_t embeddings_size(const EmbeddingRequest& request, int64_t dimensions) {
  const int64_t shown = request.dimensions > 0 ? request.dimensions : dimensions;
  return kFrame +
         times(static_cast<int64_t>(request.inputs.size()), 64 + times(shown, request.base64 ? kBase64Float : kFloat));
}

int64_t tokenize_size(const TokenizeRequest& request, int64_t num_tokens, int64_t prompt_bytes) {
  const int64_t names = request.return_token_strs ? times(4, num_tokens) + prompt_bytes + prompt_bytes / 6 : 0;
  return kFrame + times(kTokenId, num_tokens) + names;
}

ApiError answer_too_large(int64_t bytes, int64_t max_bytes, std::string_view remedy, std::string_view param) {
  return {.status = 400,
          .message = fmt::format("the answer would have about {}, at most {} are allowed (--max-answer): {}",
                                 format_bytes(bytes), format_bytes(max_bytes), remedy),
          .param = std::string(param),
          .code = "answer_too_large"};
}

}  // namespace lk
