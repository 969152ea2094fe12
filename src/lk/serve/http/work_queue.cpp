// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/work_queue.h"

#include <algorithm>
#include <utility>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"
#include "lk/base/thread_time.h"

namespace lk {
namespace {

constexpr int64_t kEndsBetweenSweeps = 1024;

// How deep tasks that yield may be inside each other: each holds what it has made so far.
constexpr int kMaxNested = 3;

int64_t thread_time_us() { return std::chrono::duration_cast<std::chrono::microseconds>(thread_time()).count(); }

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

struct WorkQueue::Running {
  WorkQueue* queue;
  int depth;
  int64_t began_us, others_us = 0;  // of the thread's time; of it, tasks that went first
};
thread_local WorkQueue::Running* WorkQueue::running_ = nullptr;

WorkQueue::WorkQueue(const Options& options) : options_(options), places_(options.max_waiting) {
  for (int i = 0; i < options_.num_threads; ++i) threads_.emplace_back([this] { main(); });
}

WorkQueue::Posted WorkQueue::post(Task task) {
  const Clock::time_point now = Clock::now();
  Posted posted;
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || refusing_) {
      posted.status = refusing_ ? *refusing_ : unavailable("the server is shutting down");
      return posted;
    }
    Lane& lane = lane_of(task.tenant, task.weight, now);
    refill(lane, now);
    if (options_.max_seconds_per_minute > 0 && lane.budget_seconds <= 0) {
      posted.status = resource_exhausted("this work took more than {:g} s of processor time within a minute",
                                         options_.max_seconds_per_minute);
      posted.retry_after_seconds = std::max(1.0, -lane.budget_seconds * 60 / options_.max_seconds_per_minute);
      return posted;
    }
    if (!places_.try_take(task.tenant, task.weight, 1)) {
      posted.status = unavailable("the server is overloaded: {} requests wait to be read, at most {} may",
                                  places_.used(), options_.max_waiting);
      posted.retry_after_seconds = 1;
      return posted;
    }
    posted.id = ++next_id_;
    lane.items.push_back({.id = posted.id, .task = std::move(task), .lane = &lane, .posted = now});
    waiting_[posted.id] = std::prev(lane.items.end());
    if (!lane.waits) order_.enter(lane, lane.num_running == 0);
  }
  wanted_.notify_one();
  return posted;
}

void WorkQueue::withdraw(Id id) {
  std::list<Item> dropped;  // ends outside the lock: it may hold the last reference to anything
  std::lock_guard lock(mutex_);
  const auto it = waiting_.find(id);
  if (it == waiting_.end()) return;
  Lane& lane = *it->second->lane;
  dropped.splice(dropped.begin(), lane.items, it->second);
  places_.give_back(lane.tenant, 1);
  waiting_.erase(it);
  if (lane.items.empty()) order_.leave(lane);
}

void WorkQueue::refuse_waiting(const Status& status) {
  std::list<Item> refused;
  {
    std::lock_guard lock(mutex_);
    refusing_ = status;
    for (auto& [tenant, lane] : lanes_) {
      if (!lane->items.empty()) order_.leave(*lane);
      places_.give_back(tenant, static_cast<int64_t>(lane->items.size()));
      refused.splice(refused.end(), lane->items);
    }
    waiting_.clear();
  }
  for (Item& item : refused) item.task.refuse(status);
}

void WorkQueue::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

WorkQueue::Stats WorkQueue::stats() const {
  std::lock_guard lock(mutex_);
  return {.waiting = places_.used(), .running = num_running_};
}

WorkQueue::Lane& WorkQueue::lane_of(const std::string& tenant, double weight, Clock::time_point now) {
  std::unique_ptr<Lane>& lane = lanes_[tenant];
  if (!lane) {
    lane = std::make_unique<Lane>();
    lane->tenant = tenant;
    lane->budget_seconds = options_.max_seconds_per_minute;
    lane->refilled = now;
    order_.add(*lane);
  }
  order_.set_weight(*lane, weight);
  return *lane;
}

void WorkQueue::refill(Lane& lane, Clock::time_point now) const {
  const double size = options_.max_seconds_per_minute;
  lane.budget_seconds = std::min(size, lane.budget_seconds + seconds(now - lane.refilled) * size / 60);
  lane.refilled = now;
}

std::optional<WorkQueue::Item> WorkQueue::take(bool of_others) {
  ++round_;
  while (auto* lane = static_cast<Lane*>(order_.first(round_))) {
    const auto first = lane->items.begin();
    if ((of_others && lane->num_running > 0) ||
        (first->task.heavy && lane->num_heavy >= std::max(1, options_.num_threads - 1))) {
      lane->passed_round = round_;  // others first
      continue;
    }
    std::optional<Item> item = std::move(*first);
    waiting_.erase(first->id);
    lane->items.erase(first);
    places_.give_back(lane->tenant, 1);
    ++lane->num_running;
    ++num_running_;
    lane->num_heavy += item->task.heavy ? 1 : 0;
    // What it will take is not known: what its tenant's tasks usually take is charged until it is.
    order_.charge(*lane, 0, lane->mean_us);
    if (lane->items.empty()) order_.leave(*lane);
    return item;
  }
  return std::nullopt;
}

void WorkQueue::finished(Lane& lane, bool heavy, int64_t advance_us, int64_t used_us) {
  order_.charge(lane, used_us, -advance_us);
  lane.budget_seconds -= static_cast<double>(used_us) / 1e6;
  lane.mean_us += (used_us - lane.mean_us) / 8;
  --lane.num_running;
  --num_running_;
  lane.num_heavy -= heavy ? 1 : 0;
  if (++num_finished_ % kEndsBetweenSweeps == 0) forget_idle();
}

// Who has nothing here and would be lifted on return anyway; a debt is kept.
void WorkQueue::forget_idle() {
  const Clock::time_point now = Clock::now();
  std::erase_if(lanes_, [&](auto& entry) {
    Lane& lane = *entry.second;
    refill(lane, now);
    if (lane.waits || lane.num_running > 0 || lane.counter.key() > order_.floor() ||
        lane.budget_seconds < options_.max_seconds_per_minute)
      return false;
    order_.forget(lane);
    return true;
  });
}

void WorkQueue::main() {
  set_thread_name(options_.thread_name);
  lower_thread_priority(options_.nice);
  std::unique_lock lock(mutex_);
  for (;;) {
    if (std::optional<Item> item = take(false)) {
      run(std::move(*item), lock);
      continue;
    }
    // What waits then waits for one that runs: whoever runs it looks again.
    if (stopping_ && order_.empty()) break;
    wanted_.wait(lock);
  }
}

// Requires: the lock, which is let go of meanwhile.
void WorkQueue::run(Item item, std::unique_lock<std::mutex>& lock) {
  Lane& lane = *item.lane;
  const int64_t advance_us = lane.mean_us;
  const bool heavy = item.task.heavy;
  lock.unlock();
  Running* const outer = running_;
  Running now{.queue = this, .depth = outer ? outer->depth + 1 : 0, .began_us = thread_time_us()};
  running_ = &now;
  if (const auto waited = Clock::now() - item.posted; waited > options_.max_wait)
    item.task.refuse(
        unavailable("the server is overloaded: the request waited {:.0f} s for a worker", seconds(waited)));
  else
    (void)guarded("a task", item.task.run);  // who gave it sees to what it throws; the thread goes on in any case
  item.task = {};                            // and what it held
  running_ = outer;
  const int64_t all_us = thread_time_us() - now.began_us;
  if (outer) outer->others_us += all_us;
  lock.lock();
  finished(lane, heavy, advance_us, all_us - now.others_us);
  if (heavy || stopping_) wanted_.notify_all();
}

void WorkQueue::yield() {
  Running* const now = running_;
  if (!now || now->queue != this || now->depth >= kMaxNested) return;
  std::unique_lock lock(mutex_);
  while (now->others_us <= thread_time_us() - now->began_us - now->others_us) {
    std::optional<Item> item = take(true);
    if (!item) return;
    run(std::move(*item), lock);
  }
}

}  // namespace lk
