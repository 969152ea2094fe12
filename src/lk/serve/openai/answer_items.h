// SPDX-License-Identifier: Apache-2.0
// Answers of APIs that are a list of items (Responses) or blocks (Messages): thoughts, texts and calls, one after the
// other, each opened and closed. AnswerFormatter says what comes; these write it, as events while it comes and as one
// object at the end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lk/serve/openai/choice.h"

namespace lk::openai {

class AnswerItems {
 public:
  virtual ~AnswerItems() = default;

  // Events are appended to `out`; where it is null they are written by nobody, and not counted: they were shown
  // elsewhere, or the answer is not streamed.
  // Once, before anything else. `prompt`: what is known of it.
  virtual void begin(std::string* out, const Completion& prompt) = 0;
  virtual void thoughts(std::string* out, std::string_view text) = 0;
  virtual void text(std::string* out, std::string_view text, std::span<const TokenLogprob> tokens) = 0;
  // Tokens behind the last text, such as the one that ended it.
  virtual void last_tokens(std::span<const TokenLogprob>) {}
  // `custom`: of a tool that is called with a text, which is what arguments() gives of it.
  virtual void call(std::string* out, const std::string& id, std::string_view name, bool custom) = 0;
  virtual void arguments(std::string* out, std::string_view piece) = 0;
  // Closes what is open. `usage` is of the whole answer.
  virtual void finish(std::string* out, const Completion& completion, const AnswerUsage& usage) = 0;
  virtual std::string error(const ApiError& error) = 0;
  virtual std::string whole() const = 0;  // after finish()

  // Events with a number, so far: where others go on with the stream, they count on from there.
  virtual int64_t num_events() const { return 0; }
  virtual void count_from(int64_t) {}
};

struct ItemsHead {
  std::string id;  // with its prefix
  int64_t created = 0;
  std::string model;
  std::string repeated;  // GenerateRequest::repeated
  TokenNames names;
  bool logprobs = false;
  int64_t max_tokens = 0;  // that were asked for
};
std::unique_ptr<AnswerItems> responses_items(const ItemsHead& head);
std::unique_ptr<AnswerItems> messages_items(const ItemsHead& head);

}  // namespace lk::openai
