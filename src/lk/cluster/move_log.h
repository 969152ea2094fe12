// SPDX-License-Identifier: Apache-2.0
// MoveLog: the last answers for which another replica was asked, for who watches a fleet. Thread safe.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

namespace lk {

struct Move {
  int64_t time = 0;              // Unix seconds
  const char* why = "";          // "continued", "hedged", "moved", "planned" or "retried", as they are counted
  std::string request, adapter;  // its x-request-id; "" = the base model
  std::string from, to;          // replicas, by URL
  int64_t tokens = 0;            // that its client had by then
};

class MoveLog {
 public:
  static constexpr size_t kMost = 100;
  void add(Move move) {
    const std::lock_guard lock(mutex_);
    moves_.push_front(std::move(move));
    if (moves_.size() > kMost) moves_.pop_back();
  }
  std::vector<Move> latest_first() const {
    const std::lock_guard lock(mutex_);
    return {moves_.begin(), moves_.end()};
  }

 private:
  mutable std::mutex mutex_;
  std::deque<Move> moves_;
};

}  // namespace lk
