// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/fifo_queue.h"

#include <iterator>

namespace lk {

FifoQueue::Rank FifoQueue::rank_of(const Ticket& ticket) { return {ticket.request->priority, ticket.order}; }

void FifoQueue::new_round() {
  ++round_;
  passed_ = {};
}

// The place whose turn it is.
std::map<FifoQueue::Place, FifoQueue::Tenant*>::const_iterator FifoQueue::at() const {
  return line_.upper_bound(passed_);
}

// As many of a tenant's requests as of its places were passed over.
Ticket* FifoQueue::pick() {
  const auto place = at();
  if (place == line_.end()) return nullptr;
  const Tenant& tenant = *place->second;
  const auto first = tenant.passed_in == round_ ? tenant.waiting.upper_bound(tenant.passed) : tenant.waiting.begin();
  return first == tenant.waiting.end() ? nullptr : first->second;
}

void FifoQueue::pass(Ticket& ticket) {
  const auto place = at();
  Tenant& tenant = *static_cast<Tenant*>(ticket.place);
  tenant.passed = rank_of(ticket);
  tenant.passed_in = round_;
  passed_ = place->first;
}

void FifoQueue::insert(Ticket& ticket, bool) {
  Tenant& tenant = tenants_[ticket.request->tenant];
  const Place place{ticket.order, next_number_++};
  ticket.place = &tenant;
  tenant.waiting.emplace(rank_of(ticket), &ticket);
  tenant.places.insert(place);
  line_.emplace(place, &tenant);
}

// Whose turn it is takes the place it stands in with it; who leaves out of turn its own, or, when another of the
// tenant's took that, the last.
void FifoQueue::erase(Ticket& ticket) {
  Tenant& tenant = *static_cast<Tenant*>(ticket.place);
  Place place;
  if (pick() == &ticket) {
    place = at()->first;
  } else {
    const auto own = tenant.places.lower_bound({ticket.order, 0});
    const bool has_own = own != tenant.places.end() && own->first == ticket.order;
    place = has_own ? *own : *std::prev(tenant.places.end());
  }
  line_.erase(place);
  tenant.places.erase(place);
  tenant.waiting.erase(rank_of(ticket));
  if (tenant.waiting.empty()) tenants_.erase(ticket.request->tenant);
}

}  // namespace lk
