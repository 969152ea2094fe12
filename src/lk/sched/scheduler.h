// SPDX-License-Identifier: Apache-2.0
// Scheduler: continuous batching. It holds every request from submit() to its last event, and each step() decides what
// the executor computes next: one token of every sequence that makes output, and with the rest of the step's token
// budget, chunks of prompts. It never sees a tensor, a file, a clock or a thread (the time is the executor's).
//
// A request is in one of two states. While it waits, it stands in the QueuePolicy and holds nothing. While it runs, it
// holds KV pages, and its adapter is pinned in the pool. A step goes like this:
// 1. Loads of adapters that ended are taken in; requests that can no longer meet their deadline are ended.
// 2. Every running request gets its place in the step, and the pages that its next tokens need (plan_running). Where
// the
//    pool has none left, these are tried in turn: merged weights are given back; then one running request is preempted:
//    it loses its pages, waits again, and computes its tokens anew when it is back. Cached pages make that cheap, and
//    since a row's value does not depend on its batch, it gets the same tokens again. The one that is preempted is
//    always the one whose tenant was furthest ahead when it was first admitted, or the latest arrival with a policy
//    that keeps no accounts: a fixed order, so that two requests never take each other's pages in turns.
// 3. Waiting requests are admitted (admit_waiting) in the order in which the policy names them, as long as there is
//    room: a place in the step, pages for the first chunk, an adapter slot, a resident adapter. Where the adapter is
//    absent, the scheduler has the executor load it and goes on with the next request; nobody waits for somebody else's
//    load. Only the first in line may evict any cached adapter for its own; a request further behind, whose load begins
//    ahead of its turn, spares the adapters of those before it.
// 4. Where a tenant that finds no memory has fallen far behind one that holds it, requests of the latter start over for
//    it (SchedulerOptions::preempt_gap).
// 5. The executor computes the step; tokens are appended, full pages published in the prefix cache, ends reported.
//
// Thread safety: none; engine thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lk/sched/adapter_slots.h"
#include "lk/sched/executor.h"
#include "lk/sched/load_breaker.h"
#include "lk/sched/merge_gate.h"
#include "lk/sched/queue_policy.h"
#include "lk/sched/reservation.h"
#include "lk/sched/sequence.h"
#include "lk/sched/slo.h"
#include "lk/sched/wait_forecast.h"

namespace lk {

// When a waiting sequence finds enough pages: when its first chunk does, and preemption settles the rest; or when all
// that run and it will find enough until their ends, by the output they may be expected to make or by max_tokens (then
// nobody is ever preempted).
enum class Admission : uint8_t { kOptimistic, kExpected, kReserved };
Result<Admission> parse_admission(std::string_view text);  // "optimistic", "expected", "reserved"

struct SchedulerOptions {
  int64_t max_step_tokens = 512;   // rows per step
  int64_t max_running = 256;       // sequences per step
  int64_t max_sequence = 1 << 20;  // prompt + output, tokens
  bool prefix_cache = true;
  int64_t load_ahead = 32;  // waiting requests whose adapters may be loaded before their turn
  Admission admission = Admission::kOptimistic;
  // A request that finds no memory changes places with a running one whose tenant would be further ahead than this even
  // afterwards, beyond the price of what is then computed again: as a part of what the pool full of output costs; 0 =
  // never.
  double preempt_gap = 0.1;
  QueueOptions queue;
  // No tenant waits for all that others have waiting, only for what their weights let them have meanwhile.
  bool serves_by_weight() const { return queue.kind != QueueKind::kFcfs; }
  // Makes the policy; the simulator has more of them than QueueKind names.
  std::function<std::unique_ptr<QueuePolicy>(const QueueOptions&, Locality)> make_queue = QueuePolicy::create;
  AdapterSlotOptions slots;
  SloOptions slo;

  // Only where nothing else than memory keeps tenants behind each other: an adapter slot would not come with it.
  bool can_preempt_for_fairness() const {
    return queue.kind == QueueKind::kVtc && slots.max == 0 && admission != Admission::kReserved;
  }
};

struct SchedulerStats {
  int64_t num_steps = 0;
  int64_t num_computed_tokens = 0;
  int64_t num_looked_up_tokens = 0;      // prompt tokens that the prefix cache was asked for
  int64_t num_cached_prompt_tokens = 0;  // taken from it
  int64_t num_preemptions = 0;
  int64_t num_fair_preemptions = 0;  // of these, for a tenant that was preempt_gap behind
  int64_t num_adapter_loads = 0;
  int64_t num_prefetches = 0;  // of the loads, those that prefetch() began
  int64_t num_adapter_drains = 0;
  int64_t num_sampling_failures = 0;  // requests ended because no token could be sampled or scored
  int64_t num_missed_deadlines = 0;   // ended because their first token would have come too late
};

class Scheduler {
 public:
  // `merging`: null while no adapter is ever merged. All of them outlive the scheduler.
  Scheduler(const SchedulerOptions& options, UnifiedPool& pool, Executor& executor, MergeGate* merging = nullptr);
  ~Scheduler();

  // Refuses what could never run: empty or longer than max_sequence (kInvalidArgument), or bigger than the whole pool
  // together with its adapter (kFailedPrecondition); what asks for an adapter that just failed to load (kUnavailable);
  // and what would miss its deadline (kDeadlineExceeded). Takes the sequence over only when it does not refuse; what it
  // refuses is as it was. Requires: the id is not in use.
  Status submit(std::unique_ptr<Sequence>& sequence);
  Status submit(Request request) {
    auto sequence = std::make_unique<Sequence>(std::move(request));
    return submit(sequence);
  }
  // Ends a request before the next step, freeing everything it holds: one that is cut short, or `complete`, since its
  // text reached a stop string. Null when there is no such request (it may have just finished).
  std::unique_ptr<Sequence> finish(RequestId id, bool complete = false);
  // Those waiting and running, in the order of arrival.
  std::vector<RequestId> requests() const;

  // Begins to load the adapter of a request that arrived and will be submitted before the next step. A hint: nothing
  // happens when the adapter is there or failed lately, when `load_ahead` were begun since the step began, or when
  // there is no room without evicting the adapter of a waiting request or the pages that running ones will want next.
  // May be called from Executor::execute(), on its thread: nothing of the step is touched. Requires: the executor knows
  // the adapter.
  void prefetch(AdapterId adapter);

  // Keeps an adapter resident from now on (its load starts at once) or lets it go. kResourceExhausted when a request in
  // the queue, or any request of another adapter, would then never fit. A pinned adapter whose load fails stays pinned,
  // and steps load it again: at the pace at which requests may try (load_breaker.h), and as soon as there is room.
  Status set_pinned(AdapterId adapter, bool pinned);
  // Frees what an adapter holds; the pages freed, or nothing while it is loading (try again after a step).
  // Requires: no request uses it.
  std::optional<int64_t> drop_adapter(AdapterId adapter);
  struct AdapterLoad {
    int64_t running = 0, waiting = 0;  // requests
  };
  std::map<AdapterId, AdapterLoad> adapter_load() const;
  bool serves_by_weight() const { return options_.serves_by_weight(); }
  int64_t max_running() const { return options_.max_running; }  // sequences of a step
  void set_tenant_weight(TenantId tenant, double weight) { policy_->set_weight(tenant, weight); }
  const std::unordered_map<TenantId, TenantService>& tenants() const { return policy_->tenants(); }

  bool has_work() const { return !sequences_.empty() || num_loading_ > 0 || next_reload() <= executor_.now(); }
  // The time at which there is work again without a call, for pinned adapters whose load failed; kNoDeadline: none.
  Micros next_reload() const;
  // The time at which an idle step would next find something to do, unless a call or the end of a load comes before:
  // next_reload(), or a deadline.
  Micros next_change() const;
  bool is_pinned(AdapterId adapter) const { return pinned_.contains(adapter); }
  // QueuePolicy's. Nothing when the policy does not know the tenant.
  std::optional<int64_t> settled_time(TenantId tenant) const { return policy_->settled_time(tenant); }
  int64_t num_waiting() const { return static_cast<int64_t>(sequences_.size() - running_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  const SchedulerStats& stats() const { return stats_; }
  // Of the wait of those that arrive now; the one by which submit() refuses.
  const WaitForecast& wait_forecast() const { return forecast_; }

  // Plans and executes one step. May return no events (only chunks were computed); they are the caller's until the next
  // step. Requires: has_work(). When everything waits for adapter loads it waits for one of them, or with `wait` false
  // returns at once; last_step_idle() tells. A step in which nothing starts, ends or goes to another page allocates
  // nothing.
  std::span<RequestEvent> step(bool wait = true);
  bool last_step_idle() const { return planned_.empty(); }

 private:
  // Who keeps its pages longer: the smaller virtual time at its first dispatch, then the earlier arrival.
  using Seniority = std::pair<int64_t, uint64_t>;
  struct Planned {
    Sequence* sequence;
    int64_t begin, end;
  };

  // Why it can not be taken, at this time and with this deadline.
  Status refusal(const Request& request, Micros now, Micros deadline) const;
  bool begin_load(AdapterId adapter);
  bool make_available(int64_t num_pages);
  void reload_pinned();
  int64_t pages_to_start(const Sequence& sequence, std::span<const PageId> found, int64_t end) const;
  bool begin_load_gently(AdapterId adapter, const std::function<bool(AdapterId)>& kept);
  void start_load(AdapterId adapter);
  bool load_ahead(AdapterId adapter);  // of a request that is not first in line
  int64_t pages_needed(const Request& request) const;
  void poll_loads(bool wait);
  void plan_merging();
  void fill_plan();
  bool give_back_merged();
  bool runs_now(const Sequence& sequence) const;  // no merged adapter keeps it out of the step
  int64_t free_places() const;
  void plan_running();
  void plan_chunk(Sequence& sequence);
  void admit_short(const Sequence& longer);
  bool admit_waiting();  // false when nobody else may take what the first in line waits for
  // Goes through the queue once, for some adapters only or for all. False when nobody else may take what the next in
  // line waits for.
  enum class Round : uint8_t { kStarving, kRunningAdapters, kAll };
  bool admit_round(Round round);
  bool admit(Sequence& sequence);
  bool try_admit(Sequence& sequence);
  Sequence* furthest_ahead(bool of_an_adapter) const;
  // Those that a merged adapter keeps out of steps are behind for another reason than memory.
  bool may_change_places() const { return preempt_gap_ > 0 && turn_.exclusive == kBaseModel; }
  int64_t lead(const Sequence& running, const Sequence& behind) const;
  bool change_places(const Sequence& behind, int64_t gap);
  int64_t pages_until_the_end(const Sequence& candidate, int64_t num_found);
  int64_t pages_to_admit(const Sequence& sequence, std::span<const PageId> found, int64_t end);
  int64_t pages_used_up(const Sequence& sequence, std::span<const PageId> found) const;
  int64_t remaining_tokens(const Sequence& sequence) const;
  void consider_drain(Sequence& blocked);
  void set_due(Sequence& sequence, Micros due);
  void end_late();
  int64_t locality(Sequence& sequence) const;
  void fail(Sequence& sequence, Status error, bool started = false);  // started: in this step
  void stop_running(Sequence& sequence, bool finished);
  bool ensure_pages(Sequence& sequence,
                    int64_t end);  // false: not in this step (it waits for a load to end, or was itself preempted)
  void add_to_plan(Sequence& sequence, int64_t num_tokens);
  bool uses_prefix_cache(const Sequence& sequence) const;
  std::span<const PageId> find_prefix(Sequence& sequence);  // valid until the next call
  void publish_pages(Sequence& sequence);
  void release_pages(Sequence& sequence);
  void preempt(Sequence& sequence);
  std::unique_ptr<Sequence> remove(Sequence& sequence);
  void apply(const Planned& planned, ItemResult& result);

  const SchedulerOptions options_;
  // Of virtual time, for memory and for a place in the batch; 0: no preemption for fairness.
  int64_t preempt_gap_ = 0, place_gap_ = 0;
  UnifiedPool& pool_;
  Executor& executor_;
  SchedulerStats stats_;

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::unique_ptr<QueuePolicy> policy_;
  AdapterSlots slots_;
  FirstTokenSlo slo_;
  WaitForecast forecast_;
  Reservation reservation_;
  LoadBreaker breaker_;
  std::map<Seniority, Sequence*> running_;
  std::set<std::pair<Micros, Sequence*>> deadlines_;  // by Sequence::due
  uint64_t next_order_ = 0;
  Micros now_ = 0;              // at the start of the step
  int64_t started_tokens_ = 0;  // in the step: prompts of sequences that ran for the first time
  int64_t num_loading_ = 0;
  std::map<AdapterId, int64_t> pinned_;  // pages of adapters that set_pinned() keeps
  int64_t pinned_pages_ = 0;
  std::set<AdapterId> to_reload_;  // pinned ones whose load failed

  MergeGate* const merging_;
  std::vector<MergeGate::Queued> queued_;  // for it, of the step being built
  MergeGate::Turn turn_;                   // what it said

  // Of the step being built or run; kept from step to step, so that they need not grow again.
  std::vector<Planned> planned_;
  std::vector<Sequence*> candidates_;  // plan_merging()'s, then plan_running()'s
  std::vector<PageId> found_;          // find_prefix()'s
  StepPlan plan_;
  std::vector<ItemResult> failed_;  // of a step that threw
  std::vector<RequestEvent> events_;
  int64_t passed_ = 0;            // waiting requests passed over in it
  std::vector<AdapterId> ahead_;  // their adapters, in that order
  bool room_ahead_ = true;        // no load ahead of its turn found too little room in it
  int64_t prefetched_ = 0;        // loads begun by prefetch() since it began
  int64_t budget_ = 0;
};

}  // namespace lk
