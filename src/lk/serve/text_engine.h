// SPDX-License-Identifier: Apache-2.0
// TextEngine: the whole path from a text request to text, on one thread: tokenizer, chat template, scheduler, engine,
// incremental decoding, stop strings. `lorikeet generate` drives it directly; the server drives it from its engine thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <boost/json/value.hpp>

#include "lk/engine/engine.h"
#include "lk/grammar/grammar.h"
#include "lk/sched/scheduler.h"
#include "lk/text/chat_template.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct TextEngineOptions {
  std::string model;               // Hugging Face directory; empty with dummy_config
  std::string dummy_config;        // config.json of random weights instead
  DType act = DType::kBF16;
  int num_threads = 0;             // 0 = all that the affinity mask allows
  std::optional<CpuIsa> isa;
  int64_t memory_bytes = 0;        // of the page pool; 0 = most of what is free
  int64_t context = 0;             // prompt + output tokens; 0 = the model's
  SchedulerOptions scheduler;      // max_sequence is set from context
  uint64_t seed = 0;               // of dummy weights
  void (*progress)(int64_t done, int64_t total) = nullptr;  // while loading
};

struct TextRequest {
  std::string adapter;                         // name; empty = the base model
  std::string prompt;                          // one of prompt, token_ids, messages
  std::vector<int32_t> token_ids;
  boost::json::array messages;                 // rendered with the chat template
  boost::json::array tools;                    // likewise; empty = none
  boost::json::object template_variables;      // further variables for the template (chat_template_kwargs)
  bool add_generation_prompt = true;           // for messages
  bool continue_final_message = false;         // the last message is left open; excludes add_generation_prompt
  bool add_special_tokens = true;              // for prompt; a chat template brings its own
  int64_t max_tokens = 128;                    // more than fits means "until the context is full"
  int64_t min_tokens = 0;                      // no stop token or end of text before
  int64_t truncate_prompt_tokens = 0;          // keep the last n tokens of the prompt; 0 = all
  SamplingParams sampling;
  std::vector<std::string> stop;               // at most 16, none empty
  std::vector<int32_t> stop_token_ids;
  bool include_stop_string = false;            // the text ends with the stop string that was reached
  std::vector<int32_t> allowed_token_ids;      // empty = all
  std::shared_ptr<const Grammar> grammar;      // what the text must match, or null
  bool embed = false;                          // no output tokens: Completion::embedding instead
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  uint64_t cache_salt = 0;
};

struct Completion {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;          // per token, when asked for
  std::vector<TokenLogprob> prompt_logprobs;   // entry i is prompt token i + 1
  FinishReason finish = FinishReason::kNone;
  Status error;                                // with kError
  std::vector<int32_t> prompt_token_ids;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;                   // of the prompt, taken from the prefix cache
  // What stopped it: the stop string, or the stop token when it is not an end-of-sequence token.
  std::optional<std::string> stop_string;
  std::optional<int32_t> stop_token;
  std::vector<float> embedding;                // [hidden_dim] mean of the last hidden states, L2-normalised
};

// Receives each token as it is made, new text (never half a character, never part of a stop string) and, once, the whole
// completion. Any may be empty.
struct CompletionSink {
  std::function<void(const TokenLogprob& token)> on_token;
  std::function<void(std::string_view piece)> on_text;
  std::function<void(Completion)> on_done;
};

class TextEngine {
 public:
  static Result<std::unique_ptr<TextEngine>> open(const TextEngineOptions& options);
  ~TextEngine();

  // Loads a PEFT directory under a name. kAlreadyExists when the name is taken ("base" always is).
  Status add_adapter(const std::string& name, const std::string& directory);
  Status add_adapter(std::shared_ptr<const Adapter> adapter);

  // kInvalidArgument / kNotFound with the reason; nothing is queued then.
  Result<RequestId> submit(TextRequest request, CompletionSink sink);
  bool cancel(RequestId id);  // on_done is called with kCancelled
  bool has_work() const { return scheduler_->has_work(); }
  void step();  // Requires: has_work(). Calls sinks.

  const Tokenizer* tokenizer() const { return tokenizer_.get(); }  // null with dummy weights
  const ModelConfig& config() const { return engine_->weights().config; }
  Engine& engine() { return *engine_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  const UnifiedPool& pool() const { return *pool_; }
  int64_t context() const { return context_; }
  const std::map<std::string, AdapterId>& adapters() const { return adapters_; }
  const GenerationDefaults& generation_defaults() const { return generation_; }

 private:
  struct Active;
  TextEngine() = default;
  Result<std::vector<int32_t>> prompt_tokens(const TextRequest& request) const;
  void on_event(RequestEvent& event);
  bool append_text(Active& active, const std::string& piece);  // true: a stop string was reached
  void flush_text(Active& active, bool all);
  void finish(RequestId id, FinishReason reason, Status error = Status());

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<UnifiedPool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  GenerationDefaults generation_;
  std::vector<int32_t> eos_token_ids_;
  int64_t context_ = 0;
  std::map<std::string, AdapterId> adapters_;
  std::unordered_map<RequestId, std::unique_ptr<Active>> active_;
  RequestId next_id_ = 1;
};

// Range checks of every sampling field; the message names the field, its value and the range.
Status validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace lk
