// SPDX-License-Identifier: Apache-2.0
// FifoQueue: first come, first served. A tenant's priorities say which of its own requests stands in which of its
// places; nobody else's turn comes later for them.
#pragma once

#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "lk/sched/queue_policy.h"

namespace lk {

class FifoQueue : public QueuePolicy {
 public:
  explicit FifoQueue(const QueueOptions& options) : QueuePolicy(options) {}

 protected:
  void new_round() override;
  Ticket* pick() override;
  void pass(Ticket& ticket) override;
  void insert(Ticket& ticket, bool arrives) override;
  void erase(Ticket& ticket) override;

 private:
  using Rank = std::pair<int64_t, uint64_t>;    // priority, order
  using Place = std::pair<uint64_t, uint64_t>;  // order, and a number of its own
  struct Tenant {
    std::map<Rank, Ticket*> waiting;  // the first stands in the first of its places, and so on
    std::set<Place> places;
    Rank passed{};  // in round `passed_in`, the last that was passed over
    uint64_t passed_in = 0;
  };
  static Rank rank_of(const Ticket& ticket);
  std::map<Place, Tenant*>::const_iterator at() const;

  std::unordered_map<TenantId, Tenant> tenants_;  // with somebody waiting
  std::map<Place, Tenant*> line_;
  uint64_t next_number_ = 1, round_ = 0;
  Place passed_{};  // of the last that was passed over in this round; {0, 0}: nobody was
};

}  // namespace lk
