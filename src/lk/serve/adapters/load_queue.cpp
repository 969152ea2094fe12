// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/load_queue.h"

#include <algorithm>
#include <utility>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

Status stopped() { return unavailable("the server is shutting down"); }

}  // namespace

LoadQueue::LoadQueue(int num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { main(); });
}

LoadQueue::~LoadQueue() { stop(); }

void LoadQueue::push(const std::string& tenant, Job job) {
  bool taken = false;
  {
    std::lock_guard lock(mutex_);
    taken = !stopping_;
    if (taken) {
      const auto [line, is_new] = lines_.try_emplace(tenant);
      if (is_new) line->second.turn = turn_ + 1;
      line->second.jobs.push_back(std::move(job));
      ++size_;
    }
  }
  if (!taken) return job.done(stopped());
  wanted_.notify_one();
}

bool LoadQueue::is_busy(const std::string& name) const {
  std::lock_guard lock(mutex_);
  return busy_.contains(name);
}

int64_t LoadQueue::size() const {
  std::lock_guard lock(mutex_);
  return size_;
}

void LoadQueue::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
  for (auto& [tenant, line] : std::exchange(lines_, {}))
    for (const Job& job : line.jobs) job.done(stopped());
}

bool LoadQueue::take_locked(Job& job) {
  const auto free = [&](const Job& candidate) { return !busy_.contains(candidate.name); };
  auto next = lines_.end();
  std::deque<Job>::iterator found;
  for (auto line = lines_.begin(); line != lines_.end(); ++line) {
    if (next != lines_.end() && line->second.turn >= next->second.turn) continue;
    const auto candidate = std::ranges::find_if(line->second.jobs, free);
    if (candidate == line->second.jobs.end()) continue;
    next = line;
    found = candidate;
  }
  if (next == lines_.end()) return false;
  job = std::move(*found);
  next->second.jobs.erase(found);
  turn_ = std::max(turn_, next->second.turn++);
  if (next->second.jobs.empty()) lines_.erase(next);
  return true;
}

void LoadQueue::main() {
  set_thread_name("lk-adapters");
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      wanted_.wait(lock, [&] { return stopping_ || take_locked(job); });
      if (!job.load) return;  // stopping
      busy_.insert(job.name);
    }
    const Status ended = guarded("a load", job.load);
    {
      std::lock_guard lock(mutex_);
      busy_.erase(job.name);
      --size_;
    }
    wanted_.notify_all();
    (void)guarded("the end of a load", [&] { job.done(ended); });
  }
}

}  // namespace lk
