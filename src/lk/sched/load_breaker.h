// SPDX-License-Identifier: Apache-2.0
// LoadBreaker: an adapter that could not be loaded is not asked for again at once. Its requests fail without a load for
// a tenth of a second, doubled with each failure in a row, at most half a minute; then one load may try.
#pragma once

#include <unordered_map>

#include "lk/sched/request.h"

namespace lk {

class LoadBreaker {
 public:
  void failed(AdapterId adapter, Micros now);
  void forget(AdapterId adapter) { failures_.erase(adapter); }
  // When it is worth trying again (kUnavailable); ok when a load may be tried. The reason was given to the requests
  // that waited for the load.
  Status check(AdapterId adapter, Micros now) const;

 private:
  struct Failure {
    int64_t in_a_row = 0;
    Micros retry_at = 0;
  };
  std::unordered_map<AdapterId, Failure> failures_;
};

}  // namespace lk
