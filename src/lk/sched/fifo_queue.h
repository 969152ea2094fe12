// SPDX-License-Identifier: Apache-2.0
// FifoQueue: first come, first served; with a limit of requests per minute and tenant it is the usual quota (rpm).
#pragma once

#include <deque>
#include <map>
#include <unordered_map>

#include "lk/sched/queue_policy.h"

namespace lk {

class FifoQueue : public QueuePolicy {
 public:
  explicit FifoQueue(const QueueOptions& options) : QueuePolicy(options) {}

 protected:
  void new_round() override { passed_any_ = false; }
  Ticket* pick() override;
  void pass(Ticket& ticket) override;
  Status allow(const Ticket& ticket, Micros now) override;
  void insert(Ticket& ticket, bool) override { waiting_.emplace(ticket.order, &ticket); }
  void erase(Ticket& ticket) override { waiting_.erase(ticket.order); }

 private:
  std::map<uint64_t, Ticket*> waiting_;  // by order
  bool passed_any_ = false;
  uint64_t passed_ = 0;                                        // order of the last one
  std::unordered_map<TenantId, std::deque<Micros>> accepted_;  // rpm: in the last minute
};

}  // namespace lk
