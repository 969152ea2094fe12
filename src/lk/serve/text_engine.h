// SPDX-License-Identifier: Apache-2.0
// TextEngine: the whole path from a request to text, on one thread: scheduler, engine, incremental decoding, stop
// strings. `lorikeet generate` drives it directly; the server drives it from its engine thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "lk/engine/engine.h"
#include "lk/merging/controller.h"
#include "lk/ops/cpu_backend.h"
#include "lk/sched/scheduler.h"
#include "lk/serve/text_model.h"

namespace lk {

struct TextEngineOptions {
  std::string model;         // Hugging Face directory; empty with dummy_config
  std::string dummy_config;  // config.json of random weights instead
  DType act = DType::kBF16;
  int num_threads = 0;  // 0 = all that the affinity mask allows
  std::optional<CpuIsa> isa;
  int64_t memory_bytes = 0;    // of the page pool (memory_plan.h)
  int64_t context = 0;         // prompt + output tokens; 0 = the model's
  SchedulerOptions scheduler;  // max_sequence is set from context
  MergeMode merging = MergeMode::kNever;
  std::vector<std::string> exact;  // with merging: adapters of these names (globs) are never merged; all others may be
  uint64_t seed = 0;               // of dummy weights
  void (*progress)(int64_t done, int64_t total) = nullptr;  // while loading
};

struct Completion {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;         // per token, when asked for
  std::vector<TokenLogprob> prompt_logprobs;  // entry i is prompt token i + 1
  FinishReason finish = FinishReason::kNone;
  Status error;  // with kError
  std::vector<int32_t> prompt_token_ids;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  // What stopped it: the stop string, or the stop token when it is not an end-of-sequence token.
  std::optional<std::string> stop_string;
  std::optional<int32_t> stop_token;
  std::vector<float> embedding;  // [hidden_dim] mean of the last hidden states, L2-normalised
};

// Receives the start of the computation, each token as it is made, new text (never half a character, never part of a
// stop string) and, once, the whole completion. Any may be empty.
struct CompletionSink {
  std::function<void()> on_start;  // the first tokens of the prompt were computed
  // The whole prompt was: its tokens, cached tokens and log-probabilities are in; before the first token.
  std::function<void(const Completion& so_far)> on_prompt;
  std::function<void(const TokenLogprob& token)> on_token;
  std::function<void(std::string_view piece)> on_text;
  std::function<void(Completion)> on_done;
};

class TextEngine {
 public:
  static Result<std::unique_ptr<TextEngine>> open(const TextEngineOptions& options);
  // The configuration of the model that open() would load: one of the two paths is empty.
  static Result<ModelConfig> read_config(const std::string& model, const std::string& dummy_config);
  ~TextEngine();

  // Loads a PEFT directory under a name. kAlreadyExists when the name is taken ("base" always is).
  Status add_adapter(const std::string& name, const std::string& directory);
  Status add_adapter(std::shared_ptr<const Adapter> adapter);
  const std::map<std::string, AdapterId>& adapters() const { return adapters_; }
  // Whether an adapter of this name never runs merged: merging is off, or --exact names it. Any thread.
  bool is_exact(std::string_view adapter) const;
  // Lets an adapter run merged from now on, if merging is on.
  void allow_merging(AdapterId adapter);

  // kInvalidArgument / kNotFound with the reason; nothing is queued then. Looks the adapter up by name.
  Result<RequestId> submit(TextRequest request, CompletionSink sink);
  // The same for a request that was prepared elsewhere. Requires: its id is new and its adapter registered.
  Status submit(PreparedRequest request, CompletionSink sink);
  bool cancel(RequestId id);  // on_done is called with kCancelled
  // Ends a request with an error of the caller's; false when it is gone.
  bool fail(RequestId id, Status error);
  bool has_work() const { return scheduler_->has_work(); }
  void step(bool wait = true);  // Requires: has_work(). Calls sinks. See Scheduler::step.

  const TextModel& text() const { return *text_; }
  std::shared_ptr<const TextModel> shared_text() const { return text_; }
  const Tokenizer* tokenizer() const { return text_->tokenizer().get(); }  // null with dummy weights
  const ModelConfig& config() const { return engine_->weights().config; }
  int64_t context() const { return text_->context(); }
  Engine& engine() { return *engine_; }
  Scheduler& scheduler() { return *scheduler_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  const UnifiedPool& pool() const { return *pool_; }
  const MergeController* merging() const { return merging_.get(); }  // null while nothing is ever merged

 private:
  struct Active;
  TextEngine() = default;
  void on_event(RequestEvent& event);
  bool append_text(Active& active, const std::string& piece);  // true: a stop string was reached
  void flush_text(Active& active, bool all);
  void finish(RequestId id, FinishReason reason, Status error = Status());

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<UnifiedPool> pool_;
  std::unique_ptr<MergeController> merging_;
  std::unique_ptr<Scheduler> scheduler_;
  std::shared_ptr<const TextModel> text_;
  std::map<std::string, AdapterId> adapters_;
  std::vector<std::string> exact_;
  std::unordered_map<RequestId, std::unique_ptr<Active>> active_;
  RequestId next_id_ = 1;
};

}  // namespace lk
