// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/adapter_reader.h"

#include <algorithm>
#include <utility>

#include "lk/base/guarded.h"

namespace lk {

AdapterReader::Ticket AdapterReader::read(const std::shared_ptr<HostAdapter>& host, Workshop::Priority priority,
                                          Then then) {
  std::lock_guard lock(mutex_);
  Reading& reading = readings_[host.get()];
  reading.waiting.push_back({++last_ticket_, std::move(then)});
  if (!reading.host) {
    reading.host = host;
    submit(reading, priority);
  } else if (priority == Workshop::Priority::kUrgent && reading.priority == Workshop::Priority::kIdle &&
             workshop_.cancel(reading.job)) {
    submit(reading, priority);
  }
  return last_ticket_;
}

void AdapterReader::submit(Reading& reading, Workshop::Priority priority) {
  reading.priority = priority;
  reading.job = workshop_.submit(
      kReaderBench, [this, host = reading.host](const std::stop_token&) { return run(*host); }, priority);
}

Workshop::Finish AdapterReader::run(HostAdapter& host) {
  Content content = guarded("a read of an adapter", [&] { return host.get(); });
  std::vector<Workshop::Finish> finishes;
  Reading done;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  done = std::move(readings_.extract(&host).mapped());
  for (Waiting& waiting : done.waiting) {
    // The last one gets ours: nobody else has the content then.
    const bool last = &waiting == &done.waiting.back();
    if (Workshop::Finish finish = waiting.then(last ? std::move(content) : content))
      finishes.push_back(std::move(finish));
  }
  if (finishes.empty()) return nullptr;
  return [finishes = std::move(finishes)] {
    for (const Workshop::Finish& finish : finishes) finish();
  };
}

bool AdapterReader::cancel(Ticket ticket) {
  Reading forgotten;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  for (auto it = readings_.begin(); it != readings_.end(); ++it) {
    std::vector<Waiting>& waiting = it->second.waiting;
    const auto found = std::ranges::find(waiting, ticket, &Waiting::ticket);
    if (found == waiting.end()) continue;
    waiting.erase(found);
    if (waiting.empty() && workshop_.cancel(it->second.job)) {
      forgotten = std::move(it->second);
      readings_.erase(it);
    }
    return true;
  }
  return false;
}

bool AdapterReader::reads(const HostAdapter& host) const {
  std::lock_guard lock(mutex_);
  return readings_.contains(&host);
}

}  // namespace lk
