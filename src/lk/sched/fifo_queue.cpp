// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/fifo_queue.h"

namespace lk {

Ticket* FifoQueue::pick() {
  const auto it = passed_any_ ? waiting_.upper_bound(passed_) : waiting_.begin();
  return it == waiting_.end() ? nullptr : it->second;
}

void FifoQueue::pass(Ticket& ticket) {
  passed_any_ = true;
  passed_ = ticket.order;
}

Status FifoQueue::allow(const Ticket& ticket, Micros now) {
  if (options_.kind != QueueKind::kRpm) return Status();
  constexpr Micros kMinute = 60'000'000;
  std::deque<Micros>& accepted = accepted_[ticket.request->tenant];
  while (!accepted.empty() && accepted.front() <= now - kMinute) accepted.pop_front();
  if (static_cast<int64_t>(accepted.size()) >= options_.requests_per_minute)
    return resource_exhausted("the tenant sent {} requests within a minute, its limit; the next may come in {:.1f} s",
                              accepted.size(), static_cast<double>(accepted.front() + kMinute - now) / 1e6);
  accepted.push_back(now);
  return Status();
}

}  // namespace lk
