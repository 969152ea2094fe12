// SPDX-License-Identifier: Apache-2.0
// TextModel: what turns a text request into a scheduler request: tokenizer, chat template, stop tokens, limits.
// Immutable after load; any thread may use it at the same time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/json/value.hpp>

#include "lk/grammar/grammar.h"
#include "lk/io/model_config.h"
#include "lk/sched/request.h"
#include "lk/text/chat_template.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct TextRequest {
  std::string adapter;  // name; empty = the base model
  std::string prompt;   // one of prompt, token_ids, messages
  std::vector<int32_t> token_ids;
  boost::json::array messages;             // rendered with the chat template
  boost::json::array tools;                // likewise; empty = none
  boost::json::object template_variables;  // further variables for the template (chat_template_kwargs)
  bool add_generation_prompt = true;       // for messages
  bool continue_final_message = false;     // the last message is left open; excludes add_generation_prompt
  bool add_special_tokens = true;          // for prompt; a chat template brings its own
  int64_t max_tokens = 128;                // more than fits means "until the context is full"
  int64_t min_tokens = 0;                  // no stop token or end of text before
  int64_t truncate_prompt_tokens = 0;      // keep the last n tokens of the prompt; 0 = all
  SamplingParams sampling;
  std::vector<std::string> stop;  // at most 16, none empty
  std::vector<int32_t> stop_token_ids;
  bool include_stop_string = false;        // the text ends with the stop string that was reached
  std::vector<int32_t> allowed_token_ids;  // empty = all
  std::shared_ptr<const Grammar> grammar;  // what the text must match, or null; overrides ignore_eos
  bool embed = false;                      // no output tokens: Completion::embedding instead
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  uint64_t cache_salt = 0;
};

// A text request as the scheduler takes it, and what its output needs. The caller sets request.id and request.adapter.
struct PreparedRequest {
  Request request;
  TextRequest text;
};

class TextModel {
 public:
  // `directory` empty: dummy weights, no text. `context` 0 = the model's own.
  static Result<std::shared_ptr<const TextModel>> load(const std::string& directory, const ModelConfig& config,
                                                       int64_t context);

  // kInvalidArgument with the field and the reason. `own_template` replaces the model's chat template (an adapter's).
  Result<PreparedRequest> prepare(TextRequest request, const ChatTemplate* own_template = nullptr) const;
  Result<std::vector<int32_t>> prompt_tokens(const TextRequest& request,
                                             const ChatTemplate* own_template = nullptr) const;

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }  // null with dummy weights
  const std::shared_ptr<const ChatTemplate>& chat_template() const { return chat_template_; }
  const GenerationDefaults& generation() const { return generation_; }
  const ModelConfig& config() const { return config_; }
  int64_t context() const { return context_; }
  const std::vector<int32_t>& end_tokens() const { return end_tokens_; }

 private:
  TextModel() = default;
  Status check(const TextRequest& request) const;
  Result<std::string> render(const TextRequest& request, const ChatTemplate* own_template) const;

  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  GenerationDefaults generation_;
  std::vector<int32_t> end_tokens_;
  int64_t context_ = 0;
};

// Range checks of every sampling field; the message names the field, its value and the range.
Status validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace lk
