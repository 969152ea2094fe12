// SPDX-License-Identifier: Apache-2.0
// TextEngine: the whole path from a request to text, on one thread: scheduler, engine, incremental decoding, stop
// strings. It calls nobody back: each step returns what it did. `lorikeet generate` drives it directly; the server
// drives it from its engine thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/engine/engine.h"
#include "lk/infer/text_model.h"
#include "lk/merging/controller.h"
#include "lk/ops/cpu_backend.h"
#include "lk/sched/scheduler.h"

namespace lk {

struct TextEngineOptions {
  std::string model;         // Hugging Face directory; empty with dummy_config
  std::string dummy_config;  // config.json of random weights instead
  DType act = DType::kBF16;
  int num_threads = 0;  // of each rank; 0 = all that the affinity mask allows, divided among them
  int num_ranks = 1;    // that the model is divided among (docs/guide/tensor_parallel.md)
  std::optional<CpuIsa> isa;
  int64_t memory_bytes = 0;        // of the page pool (memory_plan.h), of all ranks together
  int64_t context = 0;             // prompt + output tokens; 0 = the model's
  std::optional<Pooling> pooling;  // of embeddings; absent: the directory's
  SchedulerOptions scheduler;      // max_sequence is set from context
  MergeMode merging = MergeMode::kNever;
  std::vector<std::string> exact;  // with merging: adapters of these names (globs) are never merged; all others may be
  uint64_t seed = 0;               // of dummy weights
  void (*progress)(int64_t done, int64_t total) = nullptr;  // while loading
};

// What one step did for one request.
struct TextUpdate {
  TextSequence* sequence = nullptr;  // until its next update
  bool started = false;              // once: the first tokens of the prompt were computed
  bool prompt_done = false;          // once, with the first token: the completion has what the prompt gave
  StreamDelta delta;
  std::unique_ptr<TextSequence> ended;  // with the last update: `sequence`, its completion whole
};

class TextEngine {
 public:
  static Result<std::unique_ptr<TextEngine>> open(const TextEngineOptions& options);
  // The configuration of the model that open() would load: one of the two paths is empty.
  static Result<ModelConfig> read_config(const std::string& model, const std::string& dummy_config);
  ~TextEngine();

  // Loads a PEFT directory under a name, its text side with it. kAlreadyExists when the name is taken ("base" always
  // is).
  Status add_adapter(const std::string& name, const std::string& directory);
  // `side`: null for the base's.
  Status add_adapter(std::shared_ptr<const Adapter> adapter, std::shared_ptr<const TextSide> side = nullptr);
  // The text side that requests to this adapter use; the base's for "" and names that are not known.
  const TextSide& side_of(const std::string& adapter) const;
  // Forgets an adapter. Requires: no request uses it.
  void remove_adapter(const std::string& name);
  const std::map<std::string, AdapterId>& adapters() const { return adapters_; }
  // Whether an adapter of this name never runs merged: merging is off, or --exact names it. Any thread.
  bool is_exact(std::string_view adapter) const;
  // Lets an adapter run merged from now on, if merging is on.
  void allow_merging(AdapterId adapter);

  // Prepares a request in a new sequence, or in the caller's own kind of one, and queues it. Looks the adapter up by
  // name. kInvalidArgument / kNotFound with the reason; nothing is queued then.
  Result<RequestId> submit(TextRequest request,
                           std::unique_ptr<TextSequence> sequence = std::make_unique<TextSequence>());
  // Queues a sequence that was prepared elsewhere; takes it over only when it does not refuse. Requires: its id is new
  // and its adapter registered.
  Status submit(std::unique_ptr<TextSequence>& sequence);
  // Ends a request (kCancelled), or with an error of the caller's: its last update, or nothing when it is gone.
  std::optional<TextUpdate> cancel(RequestId id) { return end(id, FinishReason::kCancelled, Status()); }
  std::optional<TextUpdate> fail(RequestId id, Status error) { return end(id, FinishReason::kError, std::move(error)); }
  bool has_work() const { return scheduler_->has_work(); }
  // One step, and what it did for each request it touched: the caller's until the next step. Requires: has_work(). See
  // Scheduler::step.
  std::span<TextUpdate> step(bool wait = true);

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
  TextEngine() = default;
  static Result<std::vector<RankTeam::Setup>> load_ranks(const TextEngineOptions& options, const ModelConfig& config);
  TextUpdate update(RequestEvent& event);
  TextUpdate apply(RequestEvent& event);
  std::optional<TextUpdate> end(RequestId id, FinishReason reason, Status error);

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<UnifiedPool> pool_;
  std::unique_ptr<MergeController> merging_;
  std::unique_ptr<Scheduler> scheduler_;
  std::shared_ptr<const TextModel> text_;
  std::map<std::string, AdapterId> adapters_;
  std::map<AdapterId, std::shared_ptr<const TextSide>> sides_;  // of those that have one
  std::vector<TextUpdate> updates_;                             // of the latest step
  std::vector<std::string> exact_;
  RequestId next_id_ = 1;
};

}  // namespace lk
