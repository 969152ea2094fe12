// SPDX-License-Identifier: Apache-2.0
// Who of those that wait may start: loads of adapters, memory, adapter slots.
#include <algorithm>
#include <unordered_set>

#include "lk/base/check.h"
#include "lk/sched/scheduler.h"

namespace lk {

bool Scheduler::begin_load(AdapterId adapter) {
  const int64_t num_pages = executor_.footprint(adapter);
  if (!make_available(num_pages)) return false;
  LK_CHECK(pool_.begin_load(adapter, num_pages));
  start_load(adapter);
  return true;
}

// Merged pages go before anybody is refused, but not for nothing: only where that is enough.
bool Scheduler::make_available(int64_t num_pages) {
  if (pool_.num_available() + pool_.num_merged() < num_pages) return false;
  while (pool_.num_available() < num_pages) LK_CHECK(give_back_merged());
  return true;
}

bool Scheduler::begin_load_gently(AdapterId adapter, const std::function<bool(AdapterId)>& kept) {
  // One page per running sequence stays, or what is loaded now is evicted by the next tokens and loaded again.
  const int64_t spare = running_.empty() ? 0 : num_running() + 1;
  if (!pool_.begin_load_gently(adapter, executor_.footprint(adapter), kept, spare)) return false;
  start_load(adapter);
  return true;
}

void Scheduler::start_load(AdapterId adapter) {
  executor_.start_load(adapter, pool_.adapter_pages(adapter));
  ++num_loading_;
  ++stats_.num_adapter_loads;
}

void Scheduler::prefetch(AdapterId adapter) {
  if (adapter == kBaseModel || pool_.adapter_state(adapter) != AdapterState::kAbsent ||
      prefetched_ >= options_.load_ahead)
    return;
  if (!breaker_.allows(adapter, executor_.now())) return;
  std::optional<std::unordered_set<AdapterId>> wanted;  // collected only when something has to be evicted
  const auto kept = [&](AdapterId other) {
    if (!wanted) {
      wanted.emplace();
      for (const auto& [id, sequence] : sequences_)
        if (!sequence->running) wanted->insert(sequence->request->adapter);
    }
    return wanted->contains(other);
  };
  if (!begin_load_gently(adapter, kept)) return executor_.stage(adapter);
  ++prefetched_;
  ++stats_.num_prefetches;
}

bool Scheduler::load_ahead(AdapterId adapter) {
  if (room_ahead_)  // who is further behind does not take what this one lacked
    room_ahead_ = begin_load_gently(
        adapter, [&](AdapterId other) { return std::find(ahead_.begin(), ahead_.end(), other) != ahead_.end(); });
  return room_ahead_;
}

int64_t Scheduler::remaining_tokens(const Sequence& sequence) const {
  const Request& request = *sequence.request;
  const int64_t most = request.max_tokens - sequence.num_output();
  if (options_.admission == Admission::kReserved) return most;
  // One that outlived its forecast is taken for half done.
  const int64_t expected = policy_->expected_output(request) - sequence.num_output();
  return std::min(most, expected > 0 ? expected : std::max(kPageTokens, sequence.num_output()));
}

// Pages that must be free or evictable so that all who run and `candidate`, which finds `num_found` pages of its prompt
// cached, reach their ends.
int64_t Scheduler::pages_until_the_end(const Sequence& candidate, int64_t num_found) {
  int64_t held = num_found;
  reservation_.clear();
  reservation_.add(candidate.num_tokens(), remaining_tokens(candidate));
  for (const auto& [seniority, sequence] : running_) {
    held += static_cast<int64_t>(sequence->pages.size());
    reservation_.add(sequence->num_tokens(), remaining_tokens(*sequence));
  }
  return reservation_.peak_pages(kPageTokens) - held;
}

// What it takes into use itself, the adapter and what it found cached, can no longer be evicted for it.
int64_t Scheduler::pages_used_up(const Sequence& sequence, std::span<const PageId> found) const {
  return pool_.num_cached_pages(sequence.request->adapter) +
         std::ranges::count_if(found, [&](PageId page) { return pool_.is_cached_kv(page); });
}

// Pages that must be free or evictable so that it may start with a first chunk that ends at position `end`. One per
// running sequence stays, or admission and preemption chase each other.
int64_t Scheduler::pages_to_start(const Sequence& sequence, std::span<const PageId> found, int64_t end) const {
  return pages_for(end) - static_cast<int64_t>(found.size()) + (running_.empty() ? 0 : num_running() + 1) +
         pages_used_up(sequence, found);
}

// The same by the rules of admission: it may have to reach its end, too.
int64_t Scheduler::pages_to_admit(const Sequence& sequence, std::span<const PageId> found, int64_t end) {
  const int64_t pages = pages_to_start(sequence, found, end);
  if (running_.empty() || options_.admission == Admission::kOptimistic) return pages;
  return std::max(pages,
                  pages_until_the_end(sequence, static_cast<int64_t>(found.size())) + pages_used_up(sequence, found));
}

// Moves a waiting sequence, whose adapter is resident, to running if it finds pages. Otherwise nothing was asked or
// counted.
bool Scheduler::try_admit(Sequence& sequence) {
  const AdapterId adapter = sequence.request->adapter;
  const std::span<const PageId> found = find_prefix(sequence);
  const int64_t num_cached = static_cast<int64_t>(found.size()) * kPageTokens;
  const int64_t chunk = std::min(sequence.num_tokens() - num_cached, budget_);
  if (!make_available(pages_to_admit(sequence, found, num_cached + chunk))) return false;
  if (adapter != kBaseModel) pool_.pin(adapter);
  sequence.running = true;
  if (uses_prefix_cache(sequence)) stats_.num_looked_up_tokens += sequence.num_tokens();
  stats_.num_cached_prompt_tokens += num_cached;
  for (const PageId page : found) pool_.reuse_kv(page);
  sequence.pages.assign(found.begin(), found.end());
  sequence.num_published = static_cast<int64_t>(found.size());
  sequence.num_computed = num_cached;
  const bool first = !sequence.charged;
  if (sequence.admitted_at < 0) sequence.reserve();
  if (first) sequence.num_billed = std::min(sequence.num_computed, sequence.prompt_length());
  policy_->dispatch(sequence, sequence.prompt_length() - sequence.num_billed);
  running_.emplace(sequence.seniority(), &sequence);
  slots_.take(adapter);
  set_due(sequence, sequence.request->expires);
  sequence.blocked_since = -1;
  if (sequence.admitted_at < 0) started_tokens_ += sequence.prompt_length();
  sequence.admitted_at = now_;
  LK_CHECK(ensure_pages(sequence, sequence.num_computed + chunk));
  add_to_plan(sequence, chunk);
  return true;
}

// Of the tenant that is furthest ahead among those that run, the request that started last.
Sequence* Scheduler::furthest_ahead(bool of_an_adapter) const {
  Sequence* furthest = nullptr;
  int64_t furthest_time = 0;
  for (const auto& [seniority, sequence] : running_) {
    if ((of_an_adapter && sequence->request->adapter == kBaseModel) || sequence->request->urgent) continue;
    const int64_t time = policy_->virtual_time(*sequence);
    if (furthest && time < furthest_time) continue;
    furthest = sequence;
    furthest_time = time;
  }
  return furthest;
}

// By how much the tenant of `running` would still be ahead of the other's after changing places. What would be computed
// again counts for it: nobody starts over for a difference smaller than what it loses.
int64_t Scheduler::lead(const Sequence& running, const Sequence& behind) const {
  return policy_->lead(running, options_.queue.cost.of(running.num_computed, 0), behind);
}

// Nobody takes turns at starting over: what was handed over can be handed back only after `gap` of new service.
bool Scheduler::change_places(const Sequence& behind, int64_t gap) {
  Sequence* victim = furthest_ahead(false);
  if (!victim || lead(*victim, behind) <= gap) return false;
  preempt(*victim);
  ++stats_.num_fair_preemptions;
  return true;
}

bool Scheduler::admit(Sequence& sequence) {
  if (try_admit(sequence)) return true;
  if (!may_change_places()) return false;
  // Nobody starts over for what would not be enough: pages for as long a first chunk as there may be room for then.
  const std::span<const PageId> found = find_prefix(sequence);
  const int64_t num_cached = static_cast<int64_t>(found.size()) * kPageTokens,
                chunk = std::min(sequence.num_tokens() - num_cached, options_.max_step_tokens);
  int64_t reachable = pool_.num_available();
  for (const auto& [seniority, other] : running_)
    if (lead(*other, sequence) > 0) reachable += static_cast<int64_t>(other->pages.size());
  if (reachable < pages_to_start(sequence, found, num_cached + chunk)) return false;
  for (int64_t gap = preempt_gap_; change_places(sequence, gap); gap = 0)
    if (try_admit(sequence)) return true;
  return false;
}

// A request found every adapter slot taken. When it falls too far behind, the adapter of the tenant furthest ahead
// makes room.
void Scheduler::consider_drain(Sequence& blocked) {
  if (blocked.blocked_since < 0) blocked.blocked_since = now_;
  const Sequence* furthest = furthest_ahead(true);
  if (!furthest) return;
  const int64_t gap =
      blocked.request->urgent ? kMaxSum : policy_->virtual_time(*furthest) - policy_->virtual_time(blocked);
  if (slots_.wants_drain(gap, now_ - blocked.blocked_since)) {
    slots_.drain(furthest->request->adapter);
    ++stats_.num_adapter_drains;
  }
}

bool Scheduler::admit_round(Round round) {
  policy_->begin_round();
  while (passed_ < options_.load_ahead) {
    Ticket* ticket = policy_->next();
    if (!ticket) break;
    auto& sequence = static_cast<Sequence&>(*ticket);
    const AdapterId adapter = sequence.request->adapter;
    const auto comes_first = [&] { return std::ranges::find(turn_.first, adapter) != turn_.first.end(); };
    const bool left_out =
        (round == Round::kRunningAdapters && !slots_.runs(adapter)) || (round == Round::kStarving && !comes_first());
    if (left_out || !runs_now(sequence)) {
      policy_->pass_over(sequence);
      continue;
    }
    const AdapterState state = adapter == kBaseModel ? AdapterState::kResident : pool_.adapter_state(adapter);
    // The first in line may evict what it likes, and nobody takes what it waits for; who comes later takes nothing from
    // those before.
    if (state == AdapterState::kAbsent && !(ahead_.empty() ? begin_load(adapter) : load_ahead(adapter))) {
      executor_.stage(adapter);
      if (ahead_.empty()) return false;
    }
    const bool slot = slots_.admits(adapter);
    if (free_places() <= 0 && passed_ == 0 && slot && state == AdapterState::kResident && may_change_places())
      change_places(sequence, place_gap_);
    const bool room = budget_ > 0 && free_places() > 0;
    if (room && !slot) consider_drain(sequence);
    if (room && slot && state == AdapterState::kResident) {
      if (!admit(sequence)) {
        ahead_.push_back(adapter);
        return false;
      }
    } else {
      policy_->pass_over(sequence);
      ++passed_;
      ahead_.push_back(adapter);
    }
  }
  return true;
}

// Starts what waits for the rest of `longer` alone: requests of other tenants, not ahead of its own, whose whole
// prompts fit into what is left of the step. Only the first in each tenant's line: its order stays its own.
void Scheduler::admit_short(const Sequence& longer) {
  constexpr int kTenantsAsked = 16;  // a step's time is worth more than a better search
  const int64_t time = policy_->virtual_time(longer);
  policy_->begin_round();
  for (int asked = 0; asked < kTenantsAsked && budget_ > 0; ++asked) {
    Ticket* ticket = policy_->next();
    if (!ticket) return;
    auto& sequence = static_cast<Sequence&>(*ticket);
    const Request& request = *sequence.request;
    const bool may_overtake =
        (request.urgent || (request.tenant != longer.request->tenant && policy_->virtual_time(sequence) <= time)) &&
        (request.adapter == kBaseModel || pool_.adapter_state(request.adapter) == AdapterState::kResident) &&
        slots_.admits(request.adapter) && runs_now(sequence) &&
        sequence.num_tokens() - static_cast<int64_t>(find_prefix(sequence).size()) * kPageTokens <= budget_;
    if (may_overtake && free_places() <= 0 && may_change_places()) change_places(sequence, place_gap_);
    if (!may_overtake || free_places() <= 0 || !admit(sequence)) policy_->pass_over_tenant(sequence);
  }
}

bool Scheduler::admit_waiting() {
  if (num_waiting() == 0) return true;
  passed_ = 0;
  ahead_.clear();
  room_ahead_ = true;
  if ((!turn_.first.empty() && !admit_round(Round::kStarving)) ||
      (slots_.clusters() && !admit_round(Round::kRunningAdapters)))
    return false;
  const bool all_asked = admit_round(Round::kAll);
  // What running sequences evict for their next tokens is what is wanted last.
  for (auto adapter = ahead_.rbegin(); adapter != ahead_.rend(); ++adapter) pool_.touch(*adapter);
  return all_asked;
}

// Cached tokens of its prompt, and before them whether its adapter runs or is resident.
int64_t Scheduler::locality(Sequence& sequence) const {
  const AdapterId adapter = sequence.request->adapter;
  const int64_t adapter_score = slots_.runs(adapter)                                      ? 2
                                : pool_.adapter_state(adapter) == AdapterState::kResident ? 1
                                                                                          : 0;
  int64_t cached = 0;
  if (uses_prefix_cache(sequence))
    while ((cached + 1) * kPageTokens < sequence.prompt_length() && pool_.find_kv(sequence.key_of(cached))) ++cached;
  return (adapter_score << 32) + cached * kPageTokens;
}

}  // namespace lk
