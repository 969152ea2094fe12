// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lk/base/check.h"
#include "lk/base/guarded.h"
#include "lk/sched/enum_names.h"

namespace lk {

Result<Admission> parse_admission(std::string_view text) {
  constexpr EnumNames<Admission, 3> kNames{
      {{"optimistic", Admission::kOptimistic}, {"expected", Admission::kExpected}, {"reserved", Admission::kReserved}}};
  return parse_name("admission", text, kNames);
}

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

namespace {

constexpr int64_t kUsualAnswer = 256;  // tokens

// A part of VTC's w_q M (theorem 4.4), at the price of answers of a usual length: a price need not be linear.
MilliUnits preempt_gap(const SchedulerOptions& options, int64_t pool_pages) {
  if (options.preempt_gap == 0 || !options.can_preempt_for_fairness()) return 0;
  const double full = static_cast<double>(options.queue.cost.of(0, kUsualAnswer)) / kUsualAnswer *
                      static_cast<double>(pool_pages * kPageTokens);
  return std::clamp<MilliUnits>(std::llround(std::min(options.preempt_gap * full, static_cast<double>(kMaxSum))), 1,
                                kMaxSum);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, UnifiedPool& pool, Executor& executor, MergeGate* merging)
    : options_(options),
      pool_(pool),
      executor_(executor),
      policy_(options.make_queue(options.queue,
                                 [this](Ticket& ticket) { return locality(static_cast<Sequence&>(ticket)); })),
      slots_(options.slots),
      slo_(options.slo),
      merging_(merging) {
  LK_CHECK(options.max_step_tokens >= 1 && options.max_running >= 1);
  pool_.set_evicted([this](AdapterId adapter) { executor_.evicted(adapter); });
  if (policy_->bounds_lag()) preempt_gap_ = preempt_gap(options, pool.num_pages());
  // The more memory there is, the longer one tenant's streams could hold every place. Whoever gives up a place loses no
  // more than what lead() counts anyway.
  place_gap_ = std::min(preempt_gap_, options.queue.cost.of(0, kUsualAnswer));
}

Scheduler::~Scheduler() {
  while (!sequences_.empty()) (void)remove(*sequences_.begin()->second);
  executor_.abandon_loads();
  while (num_loading_ > 0) poll_loads(true);
  pool_.set_evicted({});
}

Status Scheduler::refusal(const Request& request, Micros now, Micros deadline) const {
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  if (prompt_length == 0) return invalid_argument("the prompt is empty");
  if (request.max_tokens < 0) return invalid_argument("max_tokens must be >= 0, got {}", request.max_tokens);
  if (request.resumed() && static_cast<int64_t>(request.output_so_far.size()) >= request.max_tokens)
    return invalid_argument("output_so_far has {} tokens: it must have fewer than max_tokens ({})",
                            request.output_so_far.size(), request.max_tokens);
  const int64_t total = prompt_length + request.max_tokens;
  if (total > options_.max_sequence)
    return invalid_argument("prompt ({}) + max_tokens ({}) exceed the context of {} tokens", prompt_length,
                            request.max_tokens, options_.max_sequence);
  if (pages_needed(request) + pinned_pages_ > pool_.num_pages())
    return failed_precondition(
        "the request needs {} pages for {} tokens and its adapter, the pool has {} ({} taken by pinned adapters): "
        "raise "
        "--memory or lower max_tokens",
        pages_needed(request), total, pool_.num_pages(), pinned_pages_);
  if (request.adapter != kBaseModel && pool_.adapter_state(request.adapter) == AdapterState::kAbsent)
    LK_RETURN_IF_ERROR(breaker_.check(request.adapter, now));
  if (deadline == kNoDeadline) return Status();
  const Micros start =
      now +
      (num_waiting() > 0 && slo_.refuses_early() ? forecast_.rate().until_start(policy_->tokens_ahead(request)) : 0);
  if (start <= slo_.start_by(deadline)) return Status();
  return deadline_exceeded("the first token would come in about {:.1f} s, {:.1f} s are allowed",
                           static_cast<double>(start - slo_.start_by(0) - now) / 1e6,
                           static_cast<double>(deadline - now) / 1e6);
}

Status Scheduler::submit(std::unique_ptr<Sequence>& sequence) {
  const Request& request = sequence->asked;
  LK_CHECK(!sequences_.contains(request.id), "request id {} is in use", request.id);
  const Micros now = executor_.now();
  Micros deadline = kNoDeadline;  // a resumed one has had its first token
  if (!request.urgent && !request.resumed()) deadline = std::min(request.deadline, slo_.deadline(now));
  if (Status refused = refusal(request, now, deadline); !refused.ok()) {
    if (request.adapter != kBaseModel) executor_.unstage(request.adapter);  // prefetch() may have staged it
    return refused;
  }
  sequence->arrival = now;
  sequence->deadline = deadline;
  sequence->order = next_order_++;
  sequence->tokens = request.prompt;
  sequence->tokens.insert(sequence->tokens.end(), request.output_so_far.begin(), request.output_so_far.end());
  if (request.adapter != kBaseModel) sequence->activation = executor_.activation(request.adapter, request.prompt);
  if (request.resumed()) sequence->num_billed = sequence->prompt_length();
  if (request.sampling.has_penalties())
    for (int64_t i = 0; i < sequence->num_tokens(); ++i)
      sequence->seen.add(sequence->tokens[static_cast<size_t>(i)], i >= sequence->prompt_length());
  policy_->arrive(*sequence);
  set_due(*sequence, std::min(sequence->deadline, request.expires));
  pool_.note_demand(request.adapter);
  sequences_.emplace(request.id, std::move(sequence));
  return Status();
}

int64_t Scheduler::pages_needed(const Request& request) const {
  const bool own_pages = request.adapter != kBaseModel && !pinned_.contains(request.adapter);
  return pages_for(static_cast<int64_t>(request.prompt.size()) + request.max_tokens) +
         (own_pages ? executor_.footprint(request.adapter) : 0);
}

Status Scheduler::set_pinned(AdapterId adapter, bool pinned) {
  const auto it = pinned_.find(adapter);
  if (pinned == (it != pinned_.end())) return Status();
  const AdapterState state = pool_.adapter_state(adapter);
  if (!pinned) {
    if (state == AdapterState::kResident) pool_.unpin(adapter);
    pinned_pages_ -= it->second;
    pinned_.erase(it);
    to_reload_.erase(adapter);
    return Status();
  }
  const int64_t pages = executor_.footprint(adapter);
  int64_t largest = 1;  // the most that any request in the queue needs, or the shortest one of another adapter
  for (const auto& [id, sequence] : sequences_)
    largest = std::max(largest, pages_needed(*sequence->request) - (sequence->request->adapter == adapter ? pages : 0));
  for (const AdapterId other : executor_.adapters())
    if (other != adapter && !is_pinned(other)) largest = std::max(largest, executor_.footprint(other) + 1);
  if (pinned_pages_ + pages + largest > pool_.num_pages())
    return resource_exhausted(
        "pinning needs {} pages; with {} pinned already, requests that need {} would no longer fit in the pool of {}",
        pages, pinned_pages_, largest, pool_.num_pages());
  if (state == AdapterState::kAbsent && !begin_load(adapter))
    return resource_exhausted("no room for {} pages of a pinned adapter now: {} of {} are free or only cached", pages,
                              pool_.num_available(), pool_.num_pages());
  if (state == AdapterState::kResident) pool_.pin(adapter);
  pinned_.emplace(adapter, pages);
  pinned_pages_ += pages;
  return Status();
}

std::optional<int64_t> Scheduler::drop_adapter(AdapterId adapter) {
  if (pool_.adapter_state(adapter) == AdapterState::kLoading) return std::nullopt;
  LK_CHECK(set_pinned(adapter, false).ok());
  breaker_.forget(adapter);
  if (merging_) merging_->forget(adapter);
  return pool_.forget(adapter);
}

std::map<AdapterId, Scheduler::AdapterLoad> Scheduler::adapter_load() const {
  std::map<AdapterId, AdapterLoad> load;
  for (const auto& [id, sequence] : sequences_)
    ++(sequence->running ? load[sequence->request->adapter].running : load[sequence->request->adapter].waiting);
  return load;
}

std::unique_ptr<Sequence> Scheduler::finish(RequestId id, bool complete) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return nullptr;
  if (complete) policy_->learn_length(*it->second);
  return remove(*it->second);
}

std::vector<RequestId> Scheduler::requests() const {
  std::vector<std::pair<uint64_t, RequestId>> by_arrival;
  for (const auto& [id, sequence] : sequences_) by_arrival.emplace_back(sequence->order, id);
  std::sort(by_arrival.begin(), by_arrival.end());
  std::vector<RequestId> ids;
  for (const auto& [order, id] : by_arrival) ids.push_back(id);
  return ids;
}

void Scheduler::release_pages(Sequence& sequence) {
  // Last page first: the head of a prompt is the likeliest to be shared, so it should be evicted last.
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) pool_.release_kv(*page);
  sequence.pages.clear();
  sequence.num_computed = 0;
  sequence.num_published = 0;
  if (sequence.running && sequence.request->adapter != kBaseModel) pool_.unpin(sequence.request->adapter);
  sequence.running = false;
}

void Scheduler::preempt(Sequence& sequence) {
  std::erase_if(planned_, [&](const Planned& planned) {
    if (planned.sequence != &sequence) return false;
    budget_ += planned.end - planned.begin;
    return true;
  });
  stop_running(sequence, false);
  policy_->wait_again(sequence);
  ++stats_.num_preemptions;
}

void Scheduler::stop_running(Sequence& sequence, bool finished) {
  release_pages(sequence);
  running_.erase(sequence.seniority());
  slots_.release(sequence.request->adapter);
  policy_->stop(sequence, finished);
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence) {
  if (sequence.running) {
    stop_running(sequence, true);
  } else {
    policy_->leave(sequence);
    if (sequence.request->adapter != kBaseModel) executor_.unstage(sequence.request->adapter);
  }
  set_due(sequence, kNoDeadline);
  return std::move(sequences_.extract(sequence.request->id).mapped());
}

void Scheduler::fail(Sequence& sequence, Status error, bool started) {
  events_.push_back({.id = sequence.request->id,
                     .sequence = &sequence,
                     .started = started,
                     .finish = FinishReason::kError,
                     .error = std::move(error),
                     .ended = remove(sequence)});
}

void Scheduler::set_due(Sequence& sequence, Micros due) {
  deadlines_.erase({sequence.due, &sequence});
  sequence.due = due;
  if (due != kNoDeadline) deadlines_.emplace(due, &sequence);
}

// Ends what has run out of time; and what never ran and can no longer have its first token in time: nobody is served
// late at the expense of who is not late yet.
void Scheduler::end_late() {
  for (auto next = deadlines_.begin(); next != deadlines_.end() && slo_.start_by(next->first) <= now_;) {
    Sequence& sequence = *(next++)->second;
    if (sequence.request->expires <= now_) {
      fail(sequence, deadline_exceeded("the request's timeout passed"));
    } else if (sequence.admitted_at < 0 && slo_.start_by(sequence.deadline) < now_) {
      ++stats_.num_missed_deadlines;
      fail(sequence, deadline_exceeded("waited {:.1f} s: the first token would come later than the {:.1f} s allowed",
                                       static_cast<double>(now_ - sequence.arrival) / 1e6,
                                       static_cast<double>(sequence.deadline - sequence.arrival) / 1e6));
    }
  }
}

void Scheduler::poll_loads(bool wait) {
  if (num_loading_ == 0) return;
  for (LoadResult& load : executor_.take_finished_loads(wait)) {
    --num_loading_;
    pool_.finish_load(load.adapter, load.status.ok());
    if (load.status.ok()) {
      breaker_.forget(load.adapter);
      to_reload_.erase(load.adapter);
      if (is_pinned(load.adapter)) pool_.pin(load.adapter);
      continue;
    }
    breaker_.failed(load.adapter, now_);
    if (is_pinned(load.adapter)) to_reload_.insert(load.adapter);
    // Only the requests of this adapter fail; nobody else notices.
    std::vector<std::pair<uint64_t, Sequence*>> failed;
    for (const auto& [id, sequence] : sequences_)
      if (!sequence->running && sequence->request->adapter == load.adapter)
        failed.emplace_back(sequence->order, sequence.get());
    std::sort(failed.begin(), failed.end());
    for (const auto& [order, sequence] : failed) fail(*sequence, load.status);
  }
}

Micros Scheduler::next_reload() const {
  Micros next = kNoDeadline;
  for (const AdapterId adapter : to_reload_)
    if (pool_.adapter_state(adapter) == AdapterState::kAbsent) next = std::min(next, breaker_.retry_at(adapter));
  return next;
}

Micros Scheduler::next_change() const {
  Micros next = next_reload();
  for (const auto& [due, sequence] : deadlines_) {
    const bool may_be_late = sequence->admitted_at < 0 && sequence->deadline != kNoDeadline;
    next = std::min({next, sequence->request->expires, may_be_late ? slo_.start_by(sequence->deadline) + 1 : next});
  }
  return next;
}

// One that finds no room is tried again by the next step: what has the room runs or loads, so there is one.
void Scheduler::reload_pinned() {
  for (const AdapterId adapter : to_reload_)
    if (pool_.adapter_state(adapter) == AdapterState::kAbsent && breaker_.allows(adapter, now_) && !begin_load(adapter))
      executor_.stage(adapter);
}

bool Scheduler::ensure_pages(Sequence& sequence, int64_t end) {
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(end)) {
    if (const std::optional<PageId> page = pool_.alloc_kv()) {
      sequence.pages.push_back(*page);
      continue;
    }
    if (give_back_merged()) continue;
    Sequence& victim = *running_.rbegin()->second;
    // A load under way holds pages that can be evicted once it ends: wait for that. Starting over would meet the next
    // load, for ever.
    if (&victim == &sequence && num_loading_ > 0) return false;
    preempt(victim);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::add_to_plan(Sequence& sequence, int64_t num_tokens) {
  planned_.push_back({&sequence, sequence.num_computed, sequence.num_computed + num_tokens});
  budget_ -= num_tokens;
}

bool Scheduler::give_back_merged() {
  const AdapterId given = merging_ ? merging_->give_back(executor_.now()) : kBaseModel;
  if (given == kBaseModel) return false;
  if (turn_.exclusive == given) turn_.exclusive = kBaseModel;
  return true;
}

bool Scheduler::runs_now(const Sequence& sequence) const {
  return turn_.exclusive == kBaseModel || sequence.request->adapter == turn_.exclusive;
}

// Requests that are kept out of a step hold pages but no place in it.
int64_t Scheduler::free_places() const {
  const bool some_wait = turn_.exclusive != kBaseModel;
  return options_.max_running - (some_wait ? static_cast<int64_t>(planned_.size()) : num_running());
}

void Scheduler::plan_merging() {
  if (!merging_) return;
  std::vector<Sequence*>& oldest_first = candidates_;
  oldest_first.clear();
  for (const auto& [id, sequence] : sequences_) oldest_first.push_back(sequence.get());
  std::ranges::sort(oldest_first, {}, &Sequence::order);
  queued_.clear();
  for (const Sequence* sequence : oldest_first)
    queued_.push_back(
        {.adapter = sequence->request->adapter,
         .rows = std::min(sequence->num_tokens() - sequence->num_computed, options_.max_step_tokens),
         .backlog_rows = sequence->prompt_length() + sequence->request->max_tokens - sequence->num_computed});
  turn_ = merging_->plan(queued_, options_.max_running, now_);
}

void Scheduler::plan_running() {
  // Decoding sequences first: a chunk of somebody's prompt never delays a token that could be made now.
  for (const bool decoding : {true, false}) {
    candidates_.clear();
    for (const auto& [order, sequence] : running_)
      if ((sequence->num_tokens() - sequence->num_computed == 1) == decoding) candidates_.push_back(sequence);
    for (Sequence* sequence : candidates_) {
      if (!sequence->running || budget_ <= 0 || !runs_now(*sequence)) continue;
      if (static_cast<int64_t>(planned_.size()) >= options_.max_running) return;  // after some were kept out of steps
      plan_chunk(*sequence);
    }
  }
}

// The next of its tokens that fit into the step. One that could fill the step leaves half of it to others' short
// prompts first: their first token does not wait for the rest of a long one, which takes at most twice as long.
void Scheduler::plan_chunk(Sequence& sequence) {
  const int64_t left = sequence.num_tokens() - sequence.num_computed;
  const bool gives_way = left >= budget_ && budget_ > 1 && num_waiting() > 0 && policy_->bounds_lag();
  const int64_t num_tokens = std::min(left, gives_way ? budget_ - budget_ / 2 : budget_);
  if (!ensure_pages(sequence, sequence.num_computed + num_tokens)) return;
  add_to_plan(sequence, num_tokens);
  if (!gives_way) return;
  admit_short(sequence);
  const auto planned = std::ranges::find(planned_, &sequence, &Planned::sequence);
  if (planned == planned_.end()) return;  // it changed places with one of them
  const int64_t end = std::min(planned->end + budget_, sequence.num_tokens());
  const int64_t pages = pages_for(end) - static_cast<int64_t>(sequence.pages.size());
  if (pages > pool_.num_available()) return;  // nobody starts over for the second half
  LK_CHECK(ensure_pages(sequence, end));
  budget_ -= end - planned->end;
  planned->end = end;
}

// Prompt log-probabilities and hidden sums need every position computed.
bool Scheduler::uses_prefix_cache(const Sequence& sequence) const {
  return options_.prefix_cache && !sequence.wants_prompt_logprobs() && !sequence.wants_hidden_sum();
}

// Cached pages of its first tokens; the last token is always computed, to have its logits.
std::span<const PageId> Scheduler::find_prefix(Sequence& sequence) {
  found_.clear();
  if (!uses_prefix_cache(sequence)) return found_;
  for (int64_t page = 0; (page + 1) * kPageTokens < sequence.num_tokens(); ++page) {
    const std::optional<PageId> cached = pool_.find_kv(sequence.key_of(page));
    if (!cached) break;
    found_.push_back(*cached);
  }
  return found_;
}

void Scheduler::publish_pages(Sequence& sequence) {
  if (!options_.prefix_cache) return;
  for (; (sequence.num_published + 1) * kPageTokens <= sequence.num_computed; ++sequence.num_published)
    pool_.publish_kv(sequence.pages[static_cast<size_t>(sequence.num_published)],
                     sequence.key_of(sequence.num_published), sequence.maker_of(sequence.num_published));
}

void Scheduler::apply(const Planned& planned, ItemResult& result) {
  Sequence& sequence = *planned.sequence;
  const int64_t end = planned.end;
  RequestEvent event{.id = sequence.request->id, .sequence = &sequence};
  if (!sequence.started) {
    sequence.started = event.started = true;
    event.cached_tokens = planned.begin;
  }
  sequence.num_computed = end;
  const int64_t billed =
      std::exchange(sequence.num_billed, std::max(sequence.num_billed, std::min(end, sequence.prompt_length())));
  const bool makes_output = result.error.ok() && end == sequence.num_tokens() && sequence.request->max_tokens > 0;
  policy_->computed(sequence, sequence.num_billed - billed, makes_output ? 1 : 0);
  if (!result.error.ok()) {
    ++stats_.num_sampling_failures;
    return fail(sequence, std::move(result.error), event.started);  // and nobody reuses what it computed in this step
  }
  publish_pages(sequence);
  // After a preemption the prompt is computed again: keep the first copy of each entry.
  for (size_t i = 0; i < result.prompt_logprobs.size(); ++i)
    if (sequence.prompt_logprobs.size() == static_cast<size_t>(planned.begin) + i)
      sequence.prompt_logprobs.push_back(std::move(result.prompt_logprobs[i]));
  if (end < sequence.num_tokens()) {
    if (event.started) events_.push_back(std::move(event));
    return;
  }
  if (sequence.num_output() == 0) {
    event.prompt_logprobs = std::move(sequence.prompt_logprobs);
    event.hidden_sum = std::move(sequence.hidden_sum);
    slo_.first_token_after(executor_.now() - sequence.admitted_at);
  }
  if (sequence.request->max_tokens == 0) {
    event.finish = FinishReason::kLength;
  } else {
    event.has_token = true;
    event.token = std::move(result.token);
    const int32_t token = event.token.token;
    if (sequence.request->constraint) {
      Status refused = guarded("a constraint", [&] { return sequence.request->constraint->accept(token); });
      if (!refused.ok()) {
        ++stats_.num_sampling_failures;
        return fail(sequence, std::move(refused), event.started);
      }
    }
    sequence.tokens.push_back(token);
    if (sequence.request->sampling.has_penalties()) sequence.seen.add(token, true);
    const auto& stops = sequence.request->stop_token_ids;
    if (std::find(stops.begin(), stops.end(), token) != stops.end())
      event.finish = FinishReason::kStop;
    else if (sequence.num_output() >= sequence.request->max_tokens)
      event.finish = FinishReason::kLength;
  }
  if (event.finish != FinishReason::kNone) {
    policy_->learn_length(sequence);
    event.ended = remove(sequence);
  }
  events_.push_back(std::move(event));
}

void Scheduler::fill_plan() {
  plan_.items.clear();
  plan_.num_tokens = 0;
  plan_.merged = kBaseModel;
  for (const Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    plan_.items.push_back(
        {.request = sequence.request,
         .tokens = sequence.tokens,
         .begin = planned.begin,
         .end = planned.end,
         .block_table = sequence.pages,
         .sample = planned.end == sequence.num_tokens() && sequence.request->max_tokens > 0,
         .deltas_from = sequence.activation ? sequence.activation->from : 0,
         .seen = sequence.seen.all(),
         .prompt_logprobs = sequence.wants_prompt_logprobs() && planned.begin < sequence.prompt_length() - 1,
         .hidden_sum = sequence.wants_hidden_sum() ? &sequence.hidden_sum : nullptr});
    plan_.num_tokens += planned.end - planned.begin;
  }
}

std::span<RequestEvent> Scheduler::step(bool wait) {
  LK_CHECK(has_work());
  events_.clear();
  now_ = executor_.now();
  started_tokens_ = 0;
  prefetched_ = 0;
  poll_loads(false);
  reload_pinned();
  end_late();
  planned_.clear();
  budget_ = options_.max_step_tokens;
  plan_merging();
  const bool some_kept_out = turn_.exclusive != kBaseModel;  // may end while planning: merged pages are given back
  plan_running();
  const bool all_asked = admit_waiting();
  if (planned_.empty() && some_kept_out) {  // nothing of that adapter could run
    turn_.exclusive = kBaseModel;
    plan_running();
    // Where its request lacks the pages of loads under way, those who were kept out must not take them with loads of
    // their own: each would evict what the other has just loaded, for ever.
    if (all_asked || num_loading_ == 0) admit_waiting();
  }
  if (planned_.empty()) {
    // Everything that could run waits for an adapter (or failed to load just now).
    if (!events_.empty()) return events_;
    if (num_loading_ > 0) {
      if (wait) poll_loads(true);
      return events_;
    }
    LK_CHECK(num_waiting() == 0, "nothing runs and nothing loads: {} waiting, {} running", num_waiting(),
             num_running());
    return events_;
  }

  fill_plan();
  if (merging_) merging_->choose(plan_);
  const Result<std::span<ItemResult>> computed =
      guarded("a step", [&]() -> Result<std::span<ItemResult>> { return executor_.execute(plan_); });
  if (!computed.ok())  // whose fault it was is not known: those who wait, and all later steps, go on
    failed_.assign(plan_.items.size(), ItemResult{.error = computed.status(), .token = {}, .prompt_logprobs = {}});
  const std::span<ItemResult> results = computed.ok() ? *computed : std::span<ItemResult>(failed_);
  if (merging_) merging_->observe(executor_.last_step_times());
  LK_CHECK(results.size() == plan_.items.size());
  ++stats_.num_steps;
  stats_.num_computed_tokens += plan_.num_tokens;
  for (size_t i = 0; i < planned_.size(); ++i) apply(planned_[i], results[i]);
  forecast_.step_ended(executor_.now(), started_tokens_, num_waiting() > 0);
  return events_;
}

}  // namespace lk
