// SPDX-License-Identifier: Apache-2.0
// Engine: executes step plans with kernels. Owns the page arena, the registered adapters, and the workshop whose jobs
// bring them from disk through the host tier into pages and build merged weights. Policy and page accounting stay with
// the scheduler.
//
// Thread safety: engine thread only; the workshop's jobs work on pages that the scheduler lent them until the load is
// reported or the merge dropped.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "lk/engine/adapter_layout.h"
#include "lk/engine/adapter_reader.h"
#include "lk/engine/loader.h"
#include "lk/engine/merger.h"
#include "lk/engine/rank_team.h"
#include "lk/model/decoder.h"
#include "lk/model/rope.h"
#include "lk/sched/executor.h"

namespace lk {

struct EngineOptions {
  int64_t max_step_tokens = 512;
  int64_t memory_bytes = 0;  // of the page pool, of each rank
};

class Engine : public Executor {
 public:
  static Result<std::unique_ptr<Engine>> create(const EngineOptions& options,
                                                std::shared_ptr<const ModelWeights> weights,
                                                std::unique_ptr<Backend> backend);
  // A model that is divided among ranks, in their order: the same tokens as those of one.
  static Result<std::unique_ptr<Engine>> create(const EngineOptions& options, std::vector<RankTeam::Setup> ranks);

  // Those of rank 0, and what is the same on every rank.
  const ModelWeights& weights() const { return *weights_; }
  const std::shared_ptr<const ModelWeights>& shared_weights() const { return weights_; }
  Backend& backend() { return backend_; }
  int64_t num_pages() const { return num_pages_; }
  int64_t page_bytes() const { return decoder_.page_bytes(); }
  const RankTeam& ranks() const { return ranks_; }

  // Plans where an adapter will lie. Any thread. kResourceExhausted when it can never fit.
  struct PreparedAdapter {
    std::shared_ptr<HostAdapter> host;
    std::vector<std::shared_ptr<const AdapterLayout>> layouts;      // by rank
    std::vector<std::shared_ptr<const MergeLayout>> merge_layouts;  // by rank
    int64_t num_pages = 0;                                          // of the largest layout
    double merge_cost = 0, merge_build_rows = 0;                    // of the whole (MergeFootprint)
    std::vector<int32_t> invocation_tokens;                         // of an activated adapter
    bool base_before = true;                                        // Activation::base_before
    int64_t vocab_size = 0;                                         // ids below it are its tokens
  };
  Result<PreparedAdapter> prepare_adapter(std::shared_ptr<HostAdapter> adapter) const;
  Result<PreparedAdapter> prepare_adapter(std::shared_ptr<const Adapter> adapter) const {  // that stays in host memory
    return prepare_adapter(std::make_shared<HostAdapter>(std::move(adapter)));
  }
  // Makes an adapter known; it becomes resident when a request needs it.
  AdapterId register_adapter(PreparedAdapter adapter);
  // Lets go of its place in the host tier. Requires: Scheduler::drop_adapter() freed its pages, and it has no merged
  // weights.
  void unregister_adapter(AdapterId id);
  bool has_adapter(AdapterId id) const { return adapters_.contains(id); }
  // Tokens of the adapter's requests, and of the base's, have ids below this.
  int64_t vocab_size(AdapterId id) const {
    return id == kBaseModel ? weights_->config.vocab_size : adapters_.at(id).prepared.vocab_size;
  }
  const std::string& adapter_name(AdapterId id) const { return adapters_.at(id).prepared.host->name(); }
  // What bringing it into pages would cost now, relative to a copy from host memory (UnifiedPool::set_reload_cost()).
  double reload_cost(AdapterId id) const { return loader_->relative_cost(*adapters_.at(id).prepared.host); }
  // Called on a thread of the workshop when a load or a merge gets on: wakes whoever calls take_finished_loads(). Set
  // before the first load.
  void set_load_listener(std::function<void()> listener) { workshop_->set_listener(std::move(listener)); }
  // Called by execute() after each layer, on its thread, to see to what cannot wait for the step's end. It must be
  // cheap when there is nothing to do (a layer may take 50 us), and may start loads but register and unregister
  // nothing. Set between two steps.
  void set_interlude(std::function<void()> interlude) { interlude_ = std::move(interlude); }

  Micros now() const override;
  int64_t footprint(AdapterId adapter) const override;
  std::optional<Activation> activation(AdapterId adapter, std::span<const int32_t> prompt) const override;
  void start_load(AdapterId adapter, std::span<const PageId> pages) override;
  void evicted(AdapterId adapter) override;
  void stage(AdapterId adapter) override;
  void unstage(AdapterId adapter) override { loader_->unstage(adapter); }
  std::vector<LoadResult> take_finished_loads(bool wait) override;
  void abandon_loads() override { loader_->abandon(); }
  std::vector<AdapterId> adapters() const override;
  std::span<ItemResult> execute(const StepPlan& plan) override;
  StepTimes last_step_times() const override { return last_step_times_; }
  double execute_seconds() const { return execute_seconds_; }  // total
  double sample_seconds() const { return sample_seconds_; }    // of these, from the logits on

  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override;
  void start_merge(AdapterId adapter, std::span<const PageId> pages) override;
  std::vector<MergeResult> take_finished_merges() override;
  void drop_merge(AdapterId adapter) override;

 private:
  struct Registered {
    PreparedAdapter prepared;
    // By rank; empty while it has no pages, or they are being filled.
    std::vector<std::shared_ptr<const ResidentAdapter>> residents;
  };
  // A row of logits somebody wants.
  struct LogitRow {
    int32_t row;
    size_t item;
    int64_t position;  // of the row in its sequence
    bool sample;       // else: score the next prompt token
  };

  Engine(const EngineOptions& options, std::vector<RankTeam::Setup> ranks);
  void build_batch(const StepPlan& plan);
  void add_rows(const StepPlan& plan, size_t item_idx);
  void add_runs(const StepPlan& plan, const StepItem& item, int32_t row_begin);
  const RopeTable& rope_table(int64_t sequence_length);
  void add_hidden(const StepPlan& plan);
  void resolve_logits(const StepPlan& plan, std::span<ItemResult> results);
  void allow_tokens(const StepPlan& plan, std::span<const LogitRow> wanted, std::span<ItemResult> results);
  SampleArgs sample_args(const StepItem& item, const LogitRow& wanted, float* logits) const;
  size_t words_of_mask() const { return static_cast<size_t>((decoder_.logits_stride() + 63) / 64); }
  Status not_sampled(const Request& request, int64_t position, SampleFault fault) const;

  const EngineOptions options_;
  RankTeam ranks_;
  // Of rank 0, which alone has the head.
  const std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  Decoder& decoder_;
  int64_t num_pages_ = 0;
  std::unordered_map<AdapterId, Registered> adapters_;
  AdapterId next_adapter_ = 0;
  std::multiset<int64_t> vocab_sizes_;  // of adapters_
  std::function<void()> interlude_;
  double execute_seconds_ = 0, sample_seconds_ = 0;
  StepTimes last_step_times_;
  RopeTable default_rope_;
  std::unordered_map<int64_t, RopeTable> rope_tables_;  // by ModelConfig::rope_length()

  // The step being executed; sized once, reused.
  std::vector<size_t> order_;  // items sorted by adapter
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> slots_;
  std::vector<float> cos_, sin_;
  std::vector<AttentionSeq> sequences_;
  std::vector<std::vector<AdapterRun>> runs_;  // by rank: the same rows, with what each has of the adapters
  std::vector<LogitRow> logit_rows_;
  std::vector<ItemResult> results_;
  std::vector<int32_t> rows_;
  std::vector<SampleArgs> sample_args_;
  std::vector<SampleResult> sample_results_;
  std::vector<uint64_t> allowed_;  // [rows of logits at a time][words_of_mask()], of constrained requests
  struct HiddenRow {
    int32_t row;
    std::vector<double>* sum;
  };
  std::vector<HiddenRow> hidden_rows_;
  std::vector<float> hidden_;  // read from the device

  std::unordered_map<AdapterId, std::vector<std::shared_ptr<const MergedWeights>>> merged_;  // finished ones; by rank
  std::unique_ptr<AdapterReader> reader_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Merger> merger_;
  std::unique_ptr<Workshop> workshop_;  // last, so that it goes first: its jobs refer to all the rest
};

}  // namespace lk
