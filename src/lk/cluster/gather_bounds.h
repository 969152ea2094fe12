// SPDX-License-Identifier: Apache-2.0
// GatherBounds: what is asked of all replicas at once, in all: one small request here is an answer of each of them,
// kept until the last has come. Private to the router.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "lk/base/shared_bound.h"

namespace lk {

// Shared between payers by weight. Thread safe.
class GatherBounds {
 public:
  // A list or a look-up begins; false: too many are under way.
  bool enter(const std::string& payer, double weight);
  // More bytes of answers are kept; false: too many are.
  bool hold(const std::string& payer, double weight, int64_t bytes);
  void give_back(const std::string& payer, bool place, int64_t bytes);

 private:
  static constexpr int64_t kPlaces = 64;
  static constexpr int64_t kBytes = int64_t{256} << 20;
  std::mutex mutex_;
  SharedBound<std::string> places_{kPlaces}, bytes_{kBytes};  // guarded by mutex_
};

}  // namespace lk
