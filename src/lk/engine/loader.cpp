// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/loader.h"

#include <algorithm>
#include <chrono>

#include "lk/base/thread_name.h"

namespace lk {

Loader::Loader(std::byte* pool_base, Backend& backend, int num_readers) : pool_base_(pool_base), backend_(backend) {
  threads_.emplace_back([this](std::stop_token stop) { copy_main(stop); });
  for (int i = 0; i < num_readers; ++i) threads_.emplace_back([this](std::stop_token stop) { read_main(stop); });
}

void Loader::start(Job job) {
  std::erase(staged_, job.host);
  auto content = job.host->try_get();
  const bool on_host = content != nullptr;
  {
    std::lock_guard lock(mutex_);
    if (on_host)
      copies_.push_back({std::move(job), std::move(content)});
    else
      reads_.push_back(std::move(job));
  }
  (on_host ? copy_wanted_ : read_wanted_).notify_one();
}

std::vector<Loader::Done> Loader::take_finished(bool wait) {
  std::vector<Done> done;
  std::unique_lock lock(mutex_);
  if (wait) finished_.wait(lock, [&] { return !done_.empty(); });
  done.swap(done_);
  return done;
}

void Loader::stage(const std::shared_ptr<HostAdapter>& adapter) {
  if (adapter->on_host() || std::ranges::count(staged_, adapter) > 0) return;
  const auto bytes = [&] {
    int64_t sum = adapter->bytes();
    for (const auto& other : staged_) sum += other->bytes();
    return sum;
  };
  const int64_t most = adapter->tier_bytes() / 2;
  if (bytes() > most) {
    // Those whose request was cancelled stay until they are dropped.
    std::lock_guard lock(mutex_);
    std::erase_if(staged_,
                  [&](const auto& other) { return !other->on_host() && std::ranges::count(stages_, other) == 0; });
  }
  if (bytes() > most) return;
  staged_.push_back(adapter);
  {
    std::lock_guard lock(mutex_);
    stages_.push_back(adapter);
  }
  read_wanted_.notify_one();
}

double Loader::relative_cost(const HostAdapter& adapter) const {
  constexpr double kMost = 100;  // one slow read should not keep an adapter for ever
  const double copy = copy_seconds_per_byte_;
  if (adapter.on_host() || copy <= 0) return 1;
  return std::min(kMost, 1 + adapter.read_seconds_per_byte() / copy);
}

void Loader::read_main(std::stop_token stop) {
  set_thread_name("lk-reader");
  for (;;) {
    std::unique_lock lock(mutex_);
    if (!read_wanted_.wait(lock, stop, [&] { return !reads_.empty() || !stages_.empty(); })) return;
    if (reads_.empty()) {
      const std::shared_ptr<HostAdapter> adapter = std::move(stages_.front());
      stages_.pop_front();
      lock.unlock();
      (void)adapter->get();  // what fails now fails again for whoever wants it, and is reported then
      continue;
    }
    Job job = std::move(reads_.front());
    reads_.pop_front();
    lock.unlock();
    auto content = job.host->get();
    lock.lock();
    copies_.push_back({std::move(job), std::move(content)});
    lock.unlock();
    copy_wanted_.notify_one();
  }
}

void Loader::copy_main(std::stop_token stop) {
  set_thread_name("lk-loader");
  for (;;) {
    std::unique_lock lock(mutex_);
    if (!copy_wanted_.wait(lock, stop, [&] { return !copies_.empty(); })) return;
    Copy copy = std::move(copies_.front());
    copies_.pop_front();
    lock.unlock();
    Done done{.adapter = copy.job.adapter, .status = copy.content.status(), .resident = nullptr};
    if (done.status.ok()) {
      const auto begin = std::chrono::steady_clock::now();
      done.resident = copy.job.layout->load(std::move(*copy.content), copy.job.pages, pool_base_, backend_);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      const double measured = seconds / static_cast<double>(std::max<int64_t>(copy.job.host->bytes(), 1)),
                   old = copy_seconds_per_byte_;
      copy_seconds_per_byte_ = old == 0 ? measured : old + 0.1 * (measured - old);
    }
    lock.lock();
    done_.push_back(std::move(done));
    lock.unlock();
    finished_.notify_one();
    if (listener_) listener_();
  }
}

}  // namespace lk
