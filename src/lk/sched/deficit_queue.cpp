// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/deficit_queue.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lk {
namespace {

constexpr int kLocalityWindow = 64;  // requests of a tenant that are compared

}  // namespace

std::map<DeficitQueue::Rank, Ticket*>::const_iterator DeficitQueue::first_of(const Tenant& tenant) const {
  return tenant.passed_round == round_ ? tenant.waiting.upper_bound(tenant.passed) : tenant.waiting.begin();
}

// Gives every tenant that can be served as many quanta as the nearest to credit needs, all at once: debts of running
// requests may be deep. False when there is none.
bool DeficitQueue::refill() {
  double quanta = std::numeric_limits<double>::infinity();
  const auto quantum_of = [this](const Tenant& tenant) {
    return static_cast<double>(options_.quantum) * tenants().at(tenant.id).weight;
  };
  for (const Tenant* tenant : ring_)
    if (first_of(*tenant) != tenant->waiting.end())
      quanta = std::min(quanta, std::floor(-tenant->credit / quantum_of(*tenant)) + 1);
  if (std::isinf(quanta)) return false;
  for (Tenant* tenant : ring_)
    if (tenant->credit <= 0) tenant->credit += quanta * quantum_of(*tenant);
  return true;
}

Ticket* DeficitQueue::most_local() const {
  Ticket* best = nullptr;
  int64_t best_score = -1;
  for (const Tenant* tenant : ring_) {
    if (tenant->credit <= 0) continue;
    int seen = 0;
    const auto first = first_of(*tenant);
    for (auto it = first; it != tenant->waiting.end() && seen < kLocalityWindow; ++it, ++seen) {
      if (it->first.first != first->first.first) break;  // of those that the tenant put first
      const int64_t score = locality_(*it->second);
      if (score < best_score || (score == best_score && best->order < it->second->order)) continue;
      best = it->second;
      best_score = score;
    }
  }
  return best;
}

Ticket* DeficitQueue::pick() {
  do {
    if (Ticket* ticket = most_local()) return ticket;
  } while (refill());
  return nullptr;
}

// The order within a tenant is not that of arrival: those before it were no better.
void DeficitQueue::pass(Ticket& ticket) {
  Tenant& tenant = tenant_of(ticket);
  tenant.passed = rank_of(ticket);
  tenant.passed_round = round_;
}

void DeficitQueue::insert(Ticket& ticket, bool arrives) {
  std::unique_ptr<Tenant>& tenant = tenants_[ticket.request->tenant];
  if (!tenant) {
    tenant = std::make_unique<Tenant>();
    tenant->id = ticket.request->tenant;
  }
  ticket.place = tenant.get();
  if (tenant->waiting.empty()) {
    // Who comes back has no credit left from before; its debt stays. Who was preempted was never away.
    if (arrives) tenant->credit = std::min(tenant->credit, 0.0);
    tenant->place = ring_.insert(ring_.end(), tenant.get());
  }
  tenant->waiting.emplace(rank_of(ticket), &ticket);
}

void DeficitQueue::erase(Ticket& ticket) {
  Tenant& tenant = tenant_of(ticket);
  tenant.waiting.erase(rank_of(ticket));
  if (tenant.waiting.empty()) ring_.erase(tenant.place);
}

void DeficitQueue::charge(Ticket& ticket, MilliUnits price, MilliUnits advance) {
  Tenant& tenant = tenant_of(ticket);
  const bool had_credit = tenant.credit > 0;
  tenant.credit -= static_cast<double>(price + advance);
  // Its turn is over. Nothing else moves it: were the order to change because it was only passed over, two tenants
  // could evict each other's adapters for ever.
  if (had_credit && tenant.credit <= 0 && !tenant.waiting.empty()) ring_.splice(ring_.end(), ring_, tenant.place);
}

}  // namespace lk
