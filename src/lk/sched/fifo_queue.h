// SPDX-License-Identifier: Apache-2.0
// FifoQueue: first come, first served.
#pragma once

#include <map>

#include "lk/sched/queue_policy.h"

namespace lk {

class FifoQueue : public QueuePolicy {
 public:
  explicit FifoQueue(const QueueOptions& options) : QueuePolicy(options) {}

 protected:
  void new_round() override { passed_any_ = false; }
  Ticket* pick() override {
    const auto it = passed_any_ ? waiting_.upper_bound(passed_) : waiting_.begin();
    return it == waiting_.end() ? nullptr : it->second;
  }
  void pass(Ticket& ticket) override {
    passed_any_ = true;
    passed_ = ticket.order;
  }
  void insert(Ticket& ticket, bool) override { waiting_.emplace(ticket.order, &ticket); }
  void erase(Ticket& ticket) override { waiting_.erase(ticket.order); }

 private:
  std::map<uint64_t, Ticket*> waiting_;  // by order
  bool passed_any_ = false;
  uint64_t passed_ = 0;  // order of the last one
};

}  // namespace lk
