// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/scheduler.h"

#include <algorithm>

#include "lk/base/check.h"

namespace lk {
namespace {

constexpr int64_t kPageTokens = 16;  // tokens per KV page; kernels/args.h

int64_t pages_for(int64_t num_tokens) { return (num_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "none";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "unknown";
}

struct Scheduler::Sequence {
  Request request;
  Order order = 0;
  std::vector<int32_t> tokens;        // prompt, then output
  int64_t num_computed = 0;           // positions whose K and V are in pages
  std::vector<PageId> pages;          // block table; one reference each
  int64_t num_published = 0;          // leading pages that carry a key
  BlockKey last_key{};                // key of page num_published - 1, or the root
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<double> hidden_sum;
  bool running = false;
  bool started = false;               // was in a step

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t num_output() const { return num_tokens() - prompt_length(); }
  bool wants_prompt_logprobs() const { return request.sampling.num_prompt_logprobs >= 0; }
};

Scheduler::Scheduler(const SchedulerOptions& options, UnifiedPool& pool, Executor& executor)
    : options_(options), pool_(pool), executor_(executor) {
  LK_CHECK(options.max_step_tokens >= 1 && options.max_running >= 1);
}

Scheduler::~Scheduler() {
  while (!sequences_.empty()) remove(*sequences_.begin()->second);
  while (num_loading_ > 0) {
    std::vector<RequestEvent> ignored;
    poll_loads(true, ignored);
  }
}

Status Scheduler::submit(Request request) {
  LK_CHECK(!sequences_.contains(request.id), "request id {} is in use", request.id);
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  if (prompt_length == 0) return invalid_argument("the prompt is empty");
  if (request.max_tokens < 0) return invalid_argument("max_tokens must be >= 0, got {}", request.max_tokens);
  const int64_t total = prompt_length + request.max_tokens;
  if (total > options_.max_sequence)
    return invalid_argument("prompt ({}) + max_tokens ({}) exceed the context of {} tokens", prompt_length, request.max_tokens,
                            options_.max_sequence);
  if (pages_needed(request) + pinned_pages_ > pool_.num_pages())
    return resource_exhausted("the request needs {} pages for {} tokens and its adapter, the pool has {} ({} taken by pinned adapters): raise "
                              "--memory or lower max_tokens", pages_needed(request), total, pool_.num_pages(), pinned_pages_);
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = request.prompt;
  sequence->order = request.urgent ? next_urgent_order_++ : next_order_++;
  sequence->request = std::move(request);
  waiting_.emplace(sequence->order, sequence.get());
  const RequestId id = sequence->request.id;
  sequences_.emplace(id, std::move(sequence));
  return Status();
}

int64_t Scheduler::pages_needed(const Request& request) const {
  const bool own_pages = request.adapter != kBaseModel && !pinned_.contains(request.adapter);
  return pages_for(static_cast<int64_t>(request.prompt.size()) + request.max_tokens) +
         (own_pages ? executor_.footprint(request.adapter).total() : 0);
}

Status Scheduler::set_pinned(AdapterId adapter, bool pinned) {
  const auto it = pinned_.find(adapter);
  if (pinned == (it != pinned_.end())) return Status();
  const AdapterState state = pool_.adapter_state(adapter);
  if (!pinned) {
    if (state == AdapterState::kResident) pool_.unpin(adapter);
    pinned_pages_ -= it->second;
    pinned_.erase(it);
    return Status();
  }
  const int64_t pages = executor_.footprint(adapter).total();
  int64_t largest = 1;  // the most any request in the queue needs
  for (const auto& [id, sequence] : sequences_) largest = std::max(largest, pages_needed(sequence->request));
  if (pinned_pages_ + pages + largest > pool_.num_pages())
    return resource_exhausted("pinning needs {} pages; with {} pinned already, requests that need {} would no longer fit in the pool of {}", pages,
                              pinned_pages_, largest, pool_.num_pages());
  if (state == AdapterState::kAbsent && !begin_load(adapter))
    return resource_exhausted("no room for {} pages of a pinned adapter now: {} of {} are free or only cached", pages, pool_.num_available(),
                              pool_.num_pages());
  if (state == AdapterState::kResident) pool_.pin(adapter);
  pinned_.emplace(adapter, pages);
  pinned_pages_ += pages;
  return Status();
}

std::optional<int64_t> Scheduler::drop_adapter(AdapterId adapter) {
  if (pool_.adapter_state(adapter) == AdapterState::kLoading) return std::nullopt;
  LK_CHECK(set_pinned(adapter, false).ok());
  return pool_.forget(adapter);
}

std::map<AdapterId, Scheduler::AdapterLoad> Scheduler::adapter_load() const {
  std::map<AdapterId, AdapterLoad> load;
  for (const auto& [order, sequence] : running_) ++load[sequence->request.adapter].running;
  for (const auto& [order, sequence] : waiting_) ++load[sequence->request.adapter].waiting;
  return load;
}

bool Scheduler::finish(RequestId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  remove(*it->second);
  return true;
}

void Scheduler::release_pages(Sequence& sequence) {
  // Last page first: the head of a prompt is the likeliest to be shared, so it should be evicted last.
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) pool_.release_kv(*page);
  sequence.pages.clear();
  sequence.num_computed = 0;
  sequence.num_published = 0;
  if (sequence.running && sequence.request.adapter != kBaseModel) pool_.unpin(sequence.request.adapter);
  sequence.running = false;
}

void Scheduler::preempt(Sequence& sequence) {
  std::erase_if(planned_, [&](const Planned& planned) {
    if (planned.sequence != &sequence) return false;
    budget_ += planned.end - planned.begin;
    return true;
  });
  release_pages(sequence);
  running_.erase(sequence.order);
  waiting_.emplace(sequence.order, &sequence);
  ++stats_.num_preemptions;
}

void Scheduler::remove(Sequence& sequence) {
  release_pages(sequence);
  running_.erase(sequence.order);
  waiting_.erase(sequence.order);
  sequences_.erase(sequence.request.id);
}

void Scheduler::poll_loads(bool wait, std::vector<RequestEvent>& events) {
  if (num_loading_ == 0) return;
  for (LoadResult& load : executor_.take_finished_loads(wait)) {
    --num_loading_;
    pool_.finish_load(load.adapter, load.status.ok());
    const auto pinned = pinned_.find(load.adapter);
    if (load.status.ok()) {
      if (pinned != pinned_.end()) pool_.pin(load.adapter);
      continue;
    }
    if (pinned != pinned_.end()) {
      pinned_pages_ -= pinned->second;
      pinned_.erase(pinned);
    }
    // Only the requests of this adapter fail; nobody else notices.
    std::vector<Sequence*> failed;
    for (const auto& [order, sequence] : waiting_)
      if (sequence->request.adapter == load.adapter) failed.push_back(sequence);
    for (Sequence* sequence : failed) {
      events.push_back({.id = sequence->request.id, .finish = FinishReason::kError, .error = load.status});
      remove(*sequence);
    }
  }
}

bool Scheduler::ensure_pages(Sequence& sequence, int64_t end) {
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(end)) {
    if (const std::optional<PageId> page = pool_.alloc_kv()) {
      sequence.pages.push_back(*page);
      continue;
    }
    Sequence& victim = *running_.rbegin()->second;
    // A load under way holds pages that can be evicted once it ends: wait for that. Starting over would meet the next load, for ever.
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

void Scheduler::plan_running() {
  // Decoding sequences first: a chunk of somebody's prompt never delays a token that could be made now.
  for (const bool decoding : {true, false}) {
    std::vector<Sequence*> candidates;
    for (const auto& [order, sequence] : running_)
      if ((sequence->num_tokens() - sequence->num_computed == 1) == decoding) candidates.push_back(sequence);
    for (Sequence* sequence : candidates) {
      if (!sequence->running || budget_ <= 0) continue;
      const int64_t num_tokens = std::min(sequence->num_tokens() - sequence->num_computed, budget_);
      if (ensure_pages(*sequence, sequence->num_computed + num_tokens)) add_to_plan(*sequence, num_tokens);
    }
  }
}

void Scheduler::match_prefix(Sequence& sequence) {
  sequence.last_key = root_block_key(sequence.request.adapter, sequence.request.cache_salt);
  // Prompt log-probabilities and hidden sums need every position computed; and the last token always is, to have its logits.
  if (!options_.prefix_cache || sequence.wants_prompt_logprobs() || sequence.request.sum_hidden) return;
  stats_.num_looked_up_tokens += sequence.num_tokens();
  for (int64_t begin = 0; begin + kPageTokens < sequence.num_tokens(); begin += kPageTokens) {
    const auto tokens = std::span<const int32_t>(sequence.tokens).subspan(static_cast<size_t>(begin), kPageTokens);
    const BlockKey key = child_block_key(sequence.last_key, tokens);
    const std::optional<PageId> page = pool_.find_kv(key);
    if (!page) break;
    sequence.pages.push_back(*page);
    sequence.last_key = key;
    ++sequence.num_published;
    sequence.num_computed += kPageTokens;
  }
}

void Scheduler::publish_pages(Sequence& sequence) {
  if (!options_.prefix_cache) return;
  while ((sequence.num_published + 1) * kPageTokens <= sequence.num_computed) {
    const auto tokens =
        std::span<const int32_t>(sequence.tokens).subspan(static_cast<size_t>(sequence.num_published * kPageTokens), kPageTokens);
    sequence.last_key = child_block_key(sequence.last_key, tokens);
    pool_.publish_kv(sequence.pages[static_cast<size_t>(sequence.num_published)], sequence.last_key,
                     sequence.request.adapter);
    ++sequence.num_published;
  }
}

bool Scheduler::begin_load(AdapterId adapter) {
  if (!pool_.begin_load(adapter, executor_.footprint(adapter))) return false;
  executor_.start_load(adapter, pool_.adapter_pages(adapter));
  ++num_loading_;
  ++stats_.num_adapter_loads;
  return true;
}

// Moves a waiting sequence to running if its adapter is resident and its first chunk finds pages.
bool Scheduler::try_admit(Sequence& sequence) {
  const AdapterId adapter = sequence.request.adapter;
  // Pinned first, so that making room for KV pages cannot evict the adapter.
  if (adapter != kBaseModel) pool_.pin(adapter);
  sequence.running = true;
  match_prefix(sequence);
  const int64_t chunk = std::min(sequence.num_tokens() - sequence.num_computed, budget_);
  const int64_t needed = pages_for(sequence.num_computed + chunk) - static_cast<int64_t>(sequence.pages.size());
  // Leave one page per running sequence, or admission and preemption chase each other.
  const int64_t reserve = running_.empty() ? 0 : static_cast<int64_t>(running_.size()) + 1;
  if (pool_.num_available() < needed + reserve) {
    release_pages(sequence);
    return false;
  }
  running_.emplace(sequence.order, &sequence);
  stats_.num_cached_prompt_tokens += sequence.num_computed;
  LK_CHECK(ensure_pages(sequence, sequence.num_computed + chunk));
  add_to_plan(sequence, chunk);
  return true;
}

void Scheduler::admit_waiting() {
  int64_t num_skipped = 0;
  for (auto it = waiting_.begin(); it != waiting_.end() && num_skipped < options_.load_ahead;) {
    Sequence& sequence = *it->second;
    ++it;  // admission removes the element
    const AdapterId adapter = sequence.request.adapter;
    const AdapterState state = adapter == kBaseModel ? AdapterState::kResident : pool_.adapter_state(adapter);
    if (state == AdapterState::kAbsent && !begin_load(adapter)) return;  // nobody behind may take the room it waits for
    if (state == AdapterState::kResident && budget_ > 0 && num_running() < options_.max_running) {
      if (!try_admit(sequence)) return;
      waiting_.erase(sequence.order);
    } else {
      ++num_skipped;
    }
  }
}

void Scheduler::apply(const Planned& planned, ItemResult& result, std::vector<RequestEvent>& events) {
  Sequence& sequence = *planned.sequence;
  const int64_t end = planned.end;
  RequestEvent event{.id = sequence.request.id};
  if (!sequence.started) {
    sequence.started = event.started = true;
    event.cached_tokens = planned.begin;
  }
  sequence.num_computed = end;
  publish_pages(sequence);
  // After a preemption the prompt is computed again: keep the first copy of each entry.
  for (size_t i = 0; i < result.prompt_logprobs.size(); ++i)
    if (sequence.prompt_logprobs.size() == static_cast<size_t>(planned.begin) + i)
      sequence.prompt_logprobs.push_back(std::move(result.prompt_logprobs[i]));
  if (end < sequence.num_tokens()) {
    if (event.started) events.push_back(std::move(event));
    return;
  }
  if (sequence.num_output() == 0) {
    event.prompt_logprobs = std::move(sequence.prompt_logprobs);
    event.hidden_sum = std::move(sequence.hidden_sum);
  }
  if (sequence.request.max_tokens == 0) {
    event.finish = FinishReason::kLength;
  } else {
    event.has_token = true;
    event.token = std::move(result.token);
    const int32_t token = event.token.token;
    sequence.tokens.push_back(token);
    if (sequence.request.constraint) sequence.request.constraint->accept(token);
    const auto& stops = sequence.request.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) event.finish = FinishReason::kStop;
    else if (sequence.num_output() >= sequence.request.max_tokens) event.finish = FinishReason::kLength;
  }
  if (event.finish != FinishReason::kNone) remove(sequence);
  events.push_back(std::move(event));
}

std::vector<RequestEvent> Scheduler::step(bool wait) {
  LK_CHECK(has_work());
  std::vector<RequestEvent> events;
  poll_loads(false, events);
  planned_.clear();
  budget_ = options_.max_step_tokens;
  plan_running();
  admit_waiting();
  if (planned_.empty()) {
    // Everything that could run waits for an adapter (or failed to load just now).
    if (!events.empty()) return events;
    if (num_loading_ > 0) {
      if (wait) poll_loads(true, events);
      return events;
    }
    if (waiting_.empty()) return events;
    // Pinned adapters may leave free pages that are too scattered for a run.
    LK_CHECK(!pinned_.empty(), "nothing runs and nothing loads: {} waiting, {} running", num_waiting(), num_running());
    Sequence& sequence = *waiting_.begin()->second;
    events.push_back({.id = sequence.request.id, .finish = FinishReason::kError,
                      .error = resource_exhausted("no contiguous pages for the adapter beside the pinned ones: raise --memory or unpin")});
    remove(sequence);
    return events;
  }

  StepPlan plan;
  for (const Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    plan.items.push_back({.request = &sequence.request,
                          .tokens = sequence.tokens,
                          .begin = planned.begin,
                          .end = planned.end,
                          .block_table = sequence.pages,
                          .sample = planned.end == sequence.num_tokens() && sequence.request.max_tokens > 0,
                          .prompt_logprobs = sequence.wants_prompt_logprobs() && sequence.num_output() == 0 &&
                                             planned.begin < sequence.prompt_length() - 1,
                          .hidden_sum = sequence.request.sum_hidden && sequence.num_output() == 0 ? &sequence.hidden_sum : nullptr});
    plan.num_tokens += planned.end - planned.begin;
  }
  std::vector<ItemResult> results = executor_.execute(plan);
  LK_CHECK(results.size() == plan.items.size());
  ++stats_.num_steps;
  stats_.num_computed_tokens += plan.num_tokens;
  for (size_t i = 0; i < planned_.size(); ++i) apply(planned_[i], results[i], events);
  return events;
}

}  // namespace lk
