// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/merger.h"

#include <time.h>

#include <chrono>

#include "lk/base/thread_name.h"

namespace lk {
namespace {

Micros thread_cpu_time() {
  struct timespec time {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<Micros>(time.tv_sec) * 1000000 + time.tv_nsec / 1000;
}

}  // namespace

Merger::Merger(std::shared_ptr<const ModelWeights> base, Backend& backend, std::byte* pool_base)
    : base_(std::move(base)), backend_(backend), pool_base_(pool_base) {
  thread_ = std::jthread([this](std::stop_token stop) { thread_main(stop); });
}

void Merger::start(Job job) {
  LK_CHECK(started_.insert(job.adapter).second, "adapter {} is merged or being merged already", job.adapter);
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  wanted_.notify_one();
}

std::vector<Merger::Done> Merger::take_finished() {
  std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

void Merger::drop(AdapterId adapter) {
  if (started_.erase(adapter) == 0) return;
  std::unique_lock lock(mutex_);
  std::erase_if(queue_, [&](const Job& job) { return job.adapter == adapter; });
  if (current_ == adapter) {
    stop_current_ = true;
    idle_.wait(lock, [&] { return current_ != adapter; });
  }
  std::erase_if(done_, [&](const Done& done) { return done.result.adapter == adapter; });
}

void Merger::thread_main(std::stop_token stop) {
  set_thread_name("lk-merger");
  for (;;) {
    std::unique_lock lock(mutex_);
    if (!wanted_.wait(lock, stop, [&] { return !queue_.empty(); })) return;
    const Job job = std::move(queue_.front());
    queue_.pop_front();
    current_ = job.adapter;
    stop_current_ = false;
    lock.unlock();
    Done done = build(job, stop);
    lock.lock();
    done_.push_back(std::move(done));
    current_ = kBaseModel;
    lock.unlock();
    idle_.notify_one();
  }
}

Merger::Done Merger::build(const Job& job, const std::stop_token& stop) {
  const auto begin = std::chrono::steady_clock::now();
  const Micros cpu_begin = thread_cpu_time();
  const std::function<bool()> stopped = [&] {
    return stop_current_.load(std::memory_order_relaxed) || stop.stop_requested();
  };
  RoundingLoss loss;
  Done done;
  Result<std::shared_ptr<const MergedWeights>> weights = unavailable("not built");
  if (const Result<std::shared_ptr<const Adapter>> content = job.host->get(); content.ok())
    weights = job.layout->build(**content, *base_, job.pages, pool_base_, backend_, stopped, &loss);
  else
    weights = content.status();
  done.result = {
      .adapter = job.adapter,
      .status = weights.status(),
      .build_time =
          std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin).count(),
      .engine_time = (thread_cpu_time() - cpu_begin) / backend_.num_host_threads(),
      .build_cost_rows = job.layout->build_cost_rows(),
      .rounding_loss = loss.total,
      .worst_rounding_loss = loss.worst,
      .worst_module = loss.worst_module};
  if (weights.ok()) done.weights = std::move(*weights);
  return done;
}

}  // namespace lk
