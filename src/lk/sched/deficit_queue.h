// SPDX-License-Identifier: Apache-2.0
// DeficitQueue: deficit longest prefix match (DLPM, arXiv:2501.14312). A tenant runs while it has credit; what it is
// charged, even after dispatch, is taken from it; when no waiting tenant has credit, each gets a quantum times its
// weight until one has. Of the requests of the tenants in credit the one with the most resident state is next.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <unordered_map>

#include "lk/sched/queue_policy.h"

namespace lk {

class DeficitQueue : public QueuePolicy {
 public:
  DeficitQueue(const QueueOptions& options, Locality locality) : QueuePolicy(options), locality_(std::move(locality)) {}

 protected:
  void new_round() override { ++round_; }
  Ticket* pick() override;
  void pass(Ticket& ticket) override;
  void insert(Ticket& ticket, bool arrives) override;
  void erase(Ticket& ticket) override;
  void charge(Ticket& ticket, MilliUnits price, MilliUnits advance) override;

  using Rank = std::pair<int64_t, uint64_t>;  // priority, order
  struct Tenant {
    TenantId id = 0;
    double credit = 0;  // milli-units
    std::map<Rank, Ticket*> waiting;
    Rank passed{};  // the last that was passed over in round `passed_round`
    uint64_t passed_round = 0;
    std::list<Tenant*>::iterator place;  // in the ring, while something waits
  };
  // The tenant's first request that was not passed over in this round.
  std::map<Rank, Ticket*>::const_iterator first_of(const Tenant& tenant) const;
  bool refill();
  std::list<Tenant*> ring_;  // tenants with waiting requests; the first in credit has its turn

 private:
  static Rank rank_of(const Ticket& ticket) { return {ticket.request->priority, ticket.order}; }
  Tenant& tenant_of(const Ticket& ticket) { return *static_cast<Tenant*>(ticket.place); }
  Ticket* most_local() const;

  const Locality locality_;
  uint64_t round_ = 0;
  std::unordered_map<TenantId, std::unique_ptr<Tenant>> tenants_;
};

}  // namespace lk
