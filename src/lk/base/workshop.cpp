// SPDX-License-Identifier: Apache-2.0
#include "lk/base/workshop.h"

#include <algorithm>
#include <utility>

#include "lk/base/thread_name.h"

namespace lk {

Workshop::Workshop(const std::vector<Bench>& benches) {
  for (const Bench& bench : benches) {
    Queue& queue = queues_.emplace_back();
    queue.idle_threads = std::max(1, bench.num_threads - 1);
    for (int i = 0; i < bench.num_threads; ++i)
      threads_.emplace_back([this, &queue, bench] { thread_main(queue, bench); });
  }
}

Workshop::~Workshop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& [id, stop] : running_) stop.request_stop();
    for (Queue& queue : queues_) queue.wanted.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

Workshop::JobId Workshop::submit(size_t bench, Work work, Priority priority) {
  std::lock_guard lock(mutex_);
  Queue& queue = queues_.at(bench);
  (priority == Priority::kUrgent ? queue.urgent : queue.idle).push_back({++last_id_, std::move(work)});
  queue.wanted.notify_one();
  return last_id_;
}

bool Workshop::cancel(JobId job) {
  Work forgotten;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  for (Queue& queue : queues_)
    for (std::deque<Job>* jobs : {&queue.urgent, &queue.idle})
      if (const auto it = std::ranges::find(*jobs, job, &Job::id); it != jobs->end()) {
        forgotten = std::move(it->work);
        jobs->erase(it);
        return true;
      }
  if (const auto it = running_.find(job); it != running_.end()) it->second.request_stop();
  return false;
}

void Workshop::wait_until_idle(JobId job) {
  std::unique_lock lock(mutex_);
  ended_changed_.wait(lock, [&] { return !running_.contains(job); });
}

void Workshop::collect(bool wait) {
  std::vector<Finish> ended;
  {
    std::unique_lock lock(mutex_);
    if (wait) ended_changed_.wait(lock, [&] { return !ended_.empty(); });
    ended.swap(ended_);
  }
  for (const Finish& finish : ended) finish();
}

std::deque<Workshop::Job>* Workshop::next_jobs(Queue& queue) {
  if (!queue.urgent.empty()) return &queue.urgent;
  return !queue.idle.empty() && queue.idle_threads > 0 ? &queue.idle : nullptr;
}

void Workshop::thread_main(Queue& queue, const Bench& bench) {
  set_thread_name(bench.name.c_str());
  std::unique_lock lock(mutex_);
  for (;;) {
    queue.wanted.wait(lock, [&] { return stopping_ || next_jobs(queue); });
    if (stopping_) return;
    std::deque<Job>& jobs = *next_jobs(queue);
    const int idle = &jobs == &queue.idle ? 1 : 0;
    queue.idle_threads -= idle;
    Job job = std::move(jobs.front());
    jobs.pop_front();
    const std::stop_token stop = running_[job.id].get_token();
    lock.unlock();
    Finish finish = job.work(stop);
    job.work = nullptr;  // what it holds goes before anybody hears of its end
    const bool news = finish != nullptr;
    lock.lock();
    running_.erase(job.id);
    queue.idle_threads += idle;
    if (idle > 0) queue.wanted.notify_one();  // this thread may get an urgent job
    if (news) ended_.push_back(std::move(finish));
    ended_changed_.notify_all();
    if (!news) continue;
    lock.unlock();
    if (listener_) listener_();
    lock.lock();
  }
}

}  // namespace lk
