// SPDX-License-Identifier: Apache-2.0
// LoadWaiters: who waits for a version that is being loaded, and until when. Bounded, in all and for each tenant: each
// holds a request. Plain data: the registry holds a lock around it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lk/serve/adapters/adapter_table.h"

namespace lk {

struct LoadWaiter {
  std::string tenant;
  std::chrono::steady_clock::time_point deadline;
  std::function<void(Result<AdapterLease>)> done;
};

class LoadWaiters {
 public:
  static constexpr int64_t kMax = 1024, kMaxOfTenant = 256;

  // False: too many wait, of this tenant or in all. `is_first`: nobody waits for that version yet.
  bool add(const AdapterKey& key, LoadWaiter waiter, bool& is_first) {
    const auto of_tenant = of_tenant_.find(waiter.tenant);
    if (count_ >= kMax || (of_tenant != of_tenant_.end() && of_tenant->second >= kMaxOfTenant)) return false;
    ++of_tenant_[waiter.tenant];
    ++count_;
    const auto [waiting, is_new] = waiting_.try_emplace(key);
    is_first = is_new;
    waiting->second.push_back(std::move(waiter));
    return true;
  }
  // Somebody asked for it to be loaded; his deadline may have passed since.
  bool contains(const AdapterKey& key) const { return waiting_.contains(key); }
  // The load ended.
  std::vector<LoadWaiter> take(const AdapterKey& key) {
    const auto found = waiting_.find(key);
    if (found == waiting_.end()) return {};
    std::vector<LoadWaiter> waiters = std::move(found->second);
    waiting_.erase(found);
    for (const LoadWaiter& waiter : waiters) leave(waiter);
    return waiters;
  }
  // Those whose deadline is not after `now`.
  std::vector<LoadWaiter> take_late(std::chrono::steady_clock::time_point now) {
    std::vector<LoadWaiter> late;
    for (auto& [key, waiters] : waiting_) {
      const auto is_late = [&](const LoadWaiter& waiter) { return waiter.deadline <= now; };
      for (const LoadWaiter& waiter : waiters)
        if (is_late(waiter)) {
          leave(waiter);
          late.push_back(waiter);
        }
      std::erase_if(waiters, is_late);
    }
    return late;
  }

 private:
  void leave(const LoadWaiter& waiter) {
    --count_;
    const auto of_tenant = of_tenant_.find(waiter.tenant);
    if (--of_tenant->second == 0) of_tenant_.erase(of_tenant);
  }

  std::map<AdapterKey, std::vector<LoadWaiter>> waiting_;  // an entry for each load that was asked for
  std::map<std::string, int64_t> of_tenant_;
  int64_t count_ = 0;
};

}  // namespace lk
