// SPDX-License-Identifier: Apache-2.0
// Scheduler: continuous batching. Each step takes one token of every decoding sequence and fills the rest of a token
// budget with prompt chunks, first come first served. It owns the page accounting; it never sees a tensor, a file, a
// clock or a thread.
//
// A sequence is waiting (no pages) or running (pages, adapter pinned). When a running sequence finds no page, the latest
// arrival loses its pages and waits again; its tokens are computed anew later (cached pages make that cheap, and row
// determinism makes it exact). Loads are started for waiting requests in order; a request whose adapter is still loading
// is passed over, it does not hold up the others.
//
// Thread safety: none; engine thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "lk/sched/executor.h"

namespace lk {

struct SchedulerOptions {
  int64_t max_step_tokens = 512;   // rows per step
  int64_t max_running = 256;       // sequences per step
  int64_t max_sequence = 1 << 20;  // prompt + output, tokens
  bool prefix_cache = true;
  int64_t load_ahead = 32;         // waiting requests whose adapters may be loaded before their turn
};

struct SchedulerStats {
  int64_t num_steps = 0;
  int64_t num_computed_tokens = 0;
  int64_t num_looked_up_tokens = 0;      // prompt tokens that the prefix cache was asked for
  int64_t num_cached_prompt_tokens = 0;  // taken from it
  int64_t num_preemptions = 0;
  int64_t num_adapter_loads = 0;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, UnifiedPool& pool, Executor& executor);
  ~Scheduler();

  // Refuses (kInvalidArgument, kResourceExhausted) what could never run: empty, longer than max_sequence, or bigger than the
  // whole pool together with its adapter. Requires: the id is not in use.
  Status submit(Request request);
  // Ends a request before the next step, freeing everything it holds: a cancelled one, or one whose
  // text reached a stop string.
  // False when there is no such request (it may have just finished).
  bool finish(RequestId id);

  // Keeps an adapter resident from now on (its load starts at once) or lets it go. kResourceExhausted when a request in the queue
  // would then never fit.
  Status set_pinned(AdapterId adapter, bool pinned);
  // Frees what an adapter holds; the pages freed, or nothing while it is loading (try again after a step).
  // Requires: no request uses it.
  std::optional<int64_t> drop_adapter(AdapterId adapter);
  struct AdapterLoad {
    int64_t running = 0, waiting = 0;  // requests
  };
  std::map<AdapterId, AdapterLoad> adapter_load() const;

  bool has_work() const { return !sequences_.empty() || num_loading_ > 0; }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  const SchedulerStats& stats() const { return stats_; }

  // Plans and executes one step. May return no events (only chunks were computed). Requires: has_work(). When everything waits for
  // adapter loads it waits for one of them, or with `wait` false returns at once; last_step_idle() tells.
  std::vector<RequestEvent> step(bool wait = true);
  bool last_step_idle() const { return planned_.empty(); }

 private:
  struct Sequence;
  using Order = uint64_t;  // arrival number: who comes first
  struct Planned {
    Sequence* sequence;
    int64_t begin, end;
  };

  bool begin_load(AdapterId adapter);
  int64_t pages_needed(const Request& request) const;
  void poll_loads(bool wait, std::vector<RequestEvent>& events);
  void plan_running();
  void admit_waiting();
  bool try_admit(Sequence& sequence);
  bool ensure_pages(Sequence& sequence, int64_t end);  // false: not in this step (it waits for a load to end, or was itself preempted)
  void add_to_plan(Sequence& sequence, int64_t num_tokens);
  void match_prefix(Sequence& sequence);
  void publish_pages(Sequence& sequence);
  void release_pages(Sequence& sequence);
  void preempt(Sequence& sequence);
  void remove(Sequence& sequence);
  void apply(const Planned& planned, ItemResult& result, std::vector<RequestEvent>& events);

  const SchedulerOptions options_;
  UnifiedPool& pool_;
  Executor& executor_;
  SchedulerStats stats_;

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::map<Order, Sequence*> waiting_;
  std::map<Order, Sequence*> running_;
  Order next_order_ = Order{1} << 48, next_urgent_order_ = 0;
  int64_t num_loading_ = 0;
  std::map<AdapterId, int64_t> pinned_;  // pages of adapters that set_pinned() keeps
  int64_t pinned_pages_ = 0;

  std::vector<Planned> planned_;  // of the step being built
  int64_t budget_ = 0;
};

}  // namespace lk
