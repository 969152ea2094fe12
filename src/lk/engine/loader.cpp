// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/loader.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace lk {

void Loader::start(Load load) {
  forget(load.adapter);  // a read of it that has not begun is this load's now
  if (std::shared_ptr<const Adapter> content = load.host->try_get()) return copy(load, std::move(content));
  workshop_.submit(kReaderBench, [this, load = std::move(load)](const std::stop_token&) {
    copy(load, load.host->get());
    return nullptr;
  });
}

// On any thread.
void Loader::copy(const Load& load, Result<std::shared_ptr<const Adapter>> content) {
  workshop_.submit(
      kCopierBench, [this, load, content = std::move(content)](const std::stop_token&) mutable -> Workshop::Finish {
        Done done{.adapter = load.adapter, .status = content.status(), .resident = nullptr};
        if (!content.ok()) return [this, done = std::move(done)] { done_.push_back(done); };
        const auto begin = std::chrono::steady_clock::now();
        done.resident = fill_adapter(*load.layout, std::move(content).value(), load.pages, pool_base_, backend_);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const double measured = seconds / static_cast<double>(std::max<int64_t>(load.host->bytes(), 1));
        load.host->let_go();
        return [this, done = std::move(done), measured] {
          double& average = copy_seconds_per_byte_;
          average = average == 0 ? measured : average + 0.1 * (measured - average);
          done_.push_back(done);
        };
      });
}

std::vector<Loader::Done> Loader::take_finished(bool wait) {
  workshop_.collect();
  while (wait && done_.empty()) workshop_.collect(true);  // something else may end first
  return std::exchange(done_, {});
}

void Loader::stage(AdapterId adapter, std::shared_ptr<HostAdapter> host) {
  if (host->on_host()) return;
  const auto is_lost = [&](AdapterId other) {
    const Staged& staged = staged_.at(other);
    return staged.read && !staged.host->on_host();
  };
  if (!budget_.stage(adapter, host->bytes(), host->tier_bytes(), is_lost)) return;
  Staged& staged = staged_[adapter];
  staged = {.host = host};
  staged.job = workshop_.submit(
      kReaderBench,
      [this, adapter, host = std::move(host)](const std::stop_token&) -> Workshop::Finish {
        (void)host->get();  // what fails now fails again for whoever wants it, and is reported then
        return [this, adapter] {
          if (const auto it = staged_.find(adapter); it != staged_.end()) it->second.read = true;
        };
      },
      Workshop::Priority::kIdle);
}

void Loader::forget(AdapterId adapter) {
  const auto it = staged_.find(adapter);
  if (it == staged_.end()) return;
  workshop_.cancel(it->second.job);
  staged_.erase(it);
  budget_.done(adapter);
}

double Loader::relative_cost(const HostAdapter& adapter) const {
  constexpr double kMost = 100;  // one slow read should not keep an adapter for ever
  if (adapter.on_host() || copy_seconds_per_byte_ <= 0) return 1;
  return std::min(kMost, 1 + adapter.read_seconds_per_byte() / copy_seconds_per_byte_);
}

}  // namespace lk
