// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/fair_queue.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "lk/base/check.h"

namespace lk {
namespace {

constexpr int64_t kEndsBetweenSweeps = 1024;

}  // namespace

void Counter::charge(MilliUnits price, MilliUnits advance) {
  const int64_t total = price * kScale + carry_;
  value_ = saturating_add(value_, total / weight_);
  carry_ = total % weight_;
  advance_ += advance;
}

void Counter::set_weight(double weight) {
  weight_ = std::max<int64_t>(1, std::llround(weight * kScale));
  carry_ = 0;
}

// --- CounterGroup

void CounterGroup::place(Member& member, Order::node_type node) {
  member.placed_key = member.counter.key();
  member.placed_at = ++next_place_;
  member.place = node ? order_.insert(std::move(node)).position : order_.insert(&member).first;
  cursor_.round = 0;
}

int64_t CounterGroup::floor() const {
  if (!order_.empty()) return (*order_.begin())->placed_key;
  return last_ ? last_->counter.key() : last_key_;
}

void CounterGroup::enter(Member& member, bool lift) {
  LK_CHECK(!member.waits);
  if (lift) member.counter.lift_to(floor());
  member.waits = true;
  place(member, {});
}

void CounterGroup::leave(Member& member) {
  order_.erase(member.place);
  cursor_.round = 0;
  member.waits = false;
  last_ = &member;
}

void CounterGroup::charge(Member& member, MilliUnits price, MilliUnits advance) {
  member.counter.charge(price, advance);
  // Output that was charged in advance in full moves no key, and nobody's place.
  const int64_t key = member.counter.key();
  if (!member.waits || key == member.placed_key) return;
  // Most charges move nobody past anybody.
  const auto next = std::next(member.place);
  if ((member.place == order_.begin() || (*std::prev(member.place))->placed_key < key) &&
      (next == order_.end() || key < (*next)->placed_key)) {
    member.placed_key = key;
    return;
  }
  place(member, order_.extract(member.place));
}

void CounterGroup::set_weight(Member& member, double weight) {
  Order::node_type node = member.waits ? order_.extract(member.place) : Order::node_type();
  member.counter.set_weight(weight);
  if (member.waits) place(member, std::move(node));
}

CounterGroup::Member* CounterGroup::first(uint64_t round) const {
  if (cursor_.round != round) cursor_ = {round, order_.begin()};
  while (cursor_.at != order_.end() && (*cursor_.at)->passed_round == round) ++cursor_.at;
  return cursor_.at == order_.end() ? nullptr : *cursor_.at;
}

void CounterGroup::forget(Member& member) {
  forgotten_ = std::max(forgotten_, member.counter.key());
  if (last_ != &member) return;
  last_key_ = member.counter.key();
  last_ = nullptr;
}

// --- FairQueue

FairQueue::Tenant& FairQueue::tenant_of(TenantId id) {
  std::unique_ptr<Tenant>& tenant = tenants_[id];
  if (!tenant) {
    tenant = std::make_unique<Tenant>();
    const auto known = tenants().find(id);
    if (known != tenants().end()) tenant->counter.set_weight(known->second.weight);
    waiting_.add(*tenant);
  }
  return *tenant;
}

int64_t FairQueue::leaf_id(const Request& request) const {
  switch (options_.within) {
    case WithinTenant::kAdapter:
      return request.adapter;
    case WithinTenant::kUser:
      return request.user;
    default:
      return 0;
  }
}

FairQueue::Rank FairQueue::rank_within(const Ticket& ticket) const {
  const int64_t priority = ticket.request->priority;
  switch (options_.within) {
    // A prompt's own time is part of its slack; one token of it counts as a millisecond.
    case WithinTenant::kSlack:
      return {priority,
              ticket.deadline == kNoDeadline
                  ? kNoDeadline
                  : ticket.deadline - 1000 * static_cast<int64_t>(ticket.request->prompt.size()),
              ticket.order};
    case WithinTenant::kNewest:
      return {priority, -static_cast<int64_t>(ticket.order), ticket.order};
    default:
      return {priority, 0, ticket.order};
  }
}

void FairQueue::set_weight(TenantId id, double weight) {
  QueuePolicy::set_weight(id, weight);
  const auto it = tenants_.find(id);
  if (it == tenants_.end()) return;
  waiting_.set_weight(*it->second, weight);
}

std::optional<int64_t> FairQueue::settled_time(TenantId id) const {
  const auto it = tenants_.find(id);
  if (it == tenants_.end()) return std::nullopt;
  return it->second->counter.key_with(-tenants().at(id).ahead);
}

double FairQueue::tokens_ahead(const Request& request) const {
  const auto own = tenants().find(request.tenant);
  if (own == tenants().end()) return 0;
  if (options_.within == WithinTenant::kNewest) return 0;
  // While it waits for its own, the others are served by their weights, as long as they have something.
  double ahead = static_cast<double>(own->second.waiting_tokens);
  const double turns = ahead / own->second.weight;
  for (const auto& [id, tenant] : tenants())
    if (id != request.tenant) ahead += std::min(static_cast<double>(tenant.waiting_tokens), turns * tenant.weight);
  return ahead;
}

void FairQueue::insert(Ticket& ticket, bool arrives) {
  Tenant& tenant = tenant_of(ticket.request->tenant);
  std::unique_ptr<Leaf>& leaf = tenant.leaves[leaf_id(*ticket.request)];
  if (!leaf) {
    leaf = std::make_unique<Leaf>();
    leaf->tenant = &tenant;
    tenant.waiting.add(*leaf);
  }
  ticket.place = leaf.get();
  leaf->tickets.emplace(rank_within(ticket), &ticket);
  if (ticket.request->priority != 0) ++tenant.num_prioritized;
  if (!leaf->waits) tenant.waiting.enter(*leaf, arrives);
  if (!tenant.waits) waiting_.enter(tenant, arrives);
}

void FairQueue::erase(Ticket& ticket) {
  Leaf& leaf = leaf_of(ticket);
  leaf.tickets.erase(rank_within(ticket));
  if (ticket.request->priority != 0) --leaf.tenant->num_prioritized;
  if (!leaf.tickets.empty()) return;
  leaf.tenant->waiting.leave(leaf);
  if (leaf.tenant->waiting.empty()) waiting_.leave(*leaf.tenant);
}

// Of those that were not passed over in this round; null when there is none.
Ticket* FairQueue::first_of(const Leaf& leaf) const {
  const auto first = leaf.passed_in == round_ ? leaf.tickets.upper_bound(leaf.passed) : leaf.tickets.begin();
  return first == leaf.tickets.end() ? nullptr : first->second;
}

// By the counters, unless somebody's priority goes before them.
FairQueue::Leaf* FairQueue::next_leaf(Tenant& tenant) const {
  auto* next = static_cast<Leaf*>(tenant.waiting.first(round_));
  if (next == nullptr || tenant.num_prioritized == 0) return next;
  const auto priority_of = [&](const Leaf& leaf) {
    const Ticket* first = first_of(leaf);
    return first ? first->request->priority : std::numeric_limits<int64_t>::max();
  };
  for (const auto& [id, leaf] : tenant.leaves) {
    if (!leaf->waits || leaf->passed_round == round_ || leaf.get() == next) continue;
    const int64_t own = priority_of(*leaf), best = priority_of(*next);
    if (own < best || (own == best && CounterGroup::Before()(leaf.get(), next))) next = leaf.get();
  }
  return next;
}

Ticket* FairQueue::pick() {
  while (auto* tenant = static_cast<Tenant*>(waiting_.first(round_))) {
    while (Leaf* leaf = next_leaf(*tenant)) {
      if (Ticket* ticket = first_of(*leaf)) return ticket;
      leaf->passed_round = round_;
    }
    tenant->passed_round = round_;
  }
  return nullptr;
}

void FairQueue::pass(Ticket& ticket) {
  Leaf& leaf = leaf_of(ticket);
  leaf.passed = rank_within(ticket);
  leaf.passed_in = round_;
  // What stands behind it in an adapter's leaf waits for the same adapter.
  if (options_.within == WithinTenant::kAdapter) leaf.passed_round = round_;
}

int64_t FairQueue::tenant_time(const Ticket& ticket, MilliUnits advance) const {
  return leaf_of(ticket).tenant->counter.key_with(advance);
}

void FairQueue::charge(Ticket& ticket, MilliUnits price, MilliUnits advance) {
  Leaf& leaf = leaf_of(ticket);
  leaf.tenant->waiting.charge(leaf, price, advance);
  waiting_.charge(*leaf.tenant, price, advance);
}

void FairQueue::begin_running(Ticket& ticket) {
  ++leaf_of(ticket).num_running;
  ++leaf_of(ticket).tenant->num_running;
}

void FairQueue::end_running(Ticket& ticket) {
  --leaf_of(ticket).num_running;
  --leaf_of(ticket).tenant->num_running;
  ++num_ended_;
}

void FairQueue::new_round() {
  ++round_;
  if (num_ended_ < kEndsBetweenSweeps) return;
  num_ended_ = 0;
  sweep();
}

void FairQueue::sweep() {
  const auto idle = [](const auto& member, int64_t floor) {
    return !member.waits && member.num_running == 0 && member.counter.key() <= floor;
  };
  std::erase_if(tenants_, [&](auto& entry) {
    Tenant& tenant = *entry.second;
    std::erase_if(tenant.leaves, [&](auto& leaf) {
      if (!idle(*leaf.second, tenant.waiting.floor())) return false;
      tenant.waiting.forget(*leaf.second);
      return true;
    });
    if (!idle(tenant, waiting_.floor())) return false;
    waiting_.forget(tenant);
    return true;
  });
}

}  // namespace lk
