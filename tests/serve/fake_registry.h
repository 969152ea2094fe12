// SPDX-License-Identifier: Apache-2.0
// A registry that loses answers, throws, or does not answer.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "lk/registry/registry.h"

namespace lk::testing {

// Everything in memory, and faults on demand.
class FakeRegistry final : public Registry {
 public:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    Entries entries;
    int64_t revision = 0;
    bool is_away = false;
    bool lose_answers = false;          // it happens, and then it is said that something had changed
    bool hang = false, closed = false;  // hang: list() until close()
    int hanging = 0;
    std::string throw_at;                   // a value with this
    std::function<void(State&)> meanwhile;  // what somebody else does between a look and the change made of it; once
    void put(const std::string& key, const std::string& value) { entries[key] = {value, ++revision}; }
    std::map<std::string, std::function<void(const Entries&)>> watches;  // the last of each prefix
    std::vector<std::pair<std::string, std::function<void(const Entries&)>>> watchers;
    // What a registry does a moment after each change.
    void tell_watchers() {
      for (const auto& [prefix, tell] : watchers) {
        Entries found;
        for (const auto& [key, entry] : entries)
          if (key.starts_with(prefix)) found[key] = entry;
        tell(found);
      }
    }
  };
  explicit FakeRegistry(std::shared_ptr<State> state) : state_(std::move(state)) {}
  Result<Entries> list(const std::string& prefix) override {
    std::unique_lock lock(state_->mutex);
    ++state_->hanging;
    state_->changed.notify_all();
    state_->changed.wait(lock, [&] { return !state_->hang || state_->closed; });
    --state_->hanging;
    if (state_->closed) return cancelled("closed");
    if (state_->is_away) return unavailable("it is away");
    Entries found;
    for (const auto& [key, entry] : state_->entries)
      if (key.starts_with(prefix)) found[key] = entry;
    return found;
  }
  Result<bool> commit(const Transaction& transaction) override {
    std::lock_guard lock(state_->mutex);
    if (state_->is_away) return unavailable("it is away");
    if (const auto others = std::exchange(state_->meanwhile, nullptr)) others(*state_);
    for (const auto& [key, value] : transaction.puts)
      if (!state_->throw_at.empty() && value.find(state_->throw_at) != std::string::npos) throw std::bad_alloc();
    for (const auto& [key, revision] : transaction.unchanged) {
      const auto found = state_->entries.find(key);
      if ((found == state_->entries.end() ? 0 : found->second.revision) != revision) return false;
    }
    for (const auto& [prefix, revision] : transaction.none_newer)
      for (const auto& [key, entry] : state_->entries)
        if (key.starts_with(prefix) && entry.revision > revision) return false;
    ++state_->revision;
    for (const auto& [key, value] : transaction.puts)
      state_->entries[key] = {.value = value, .revision = state_->revision};
    for (const std::string& key : transaction.removals) state_->entries.erase(key);
    return !state_->lose_answers;
  }
  void watch(const std::string& prefix, std::function<void(const Entries&)> on_change) override {
    state_->watchers.emplace_back(prefix, on_change);
    state_->watches[prefix] = std::move(on_change);
  }
  void announce(Announcement) override {}
  void withdraw() override {}
  void close() override {
    std::lock_guard lock(state_->mutex);
    state_->closed = true;
    state_->changed.notify_all();
  }
  bool is_reachable() const override { return true; }

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace lk::testing
