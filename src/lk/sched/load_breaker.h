// SPDX-License-Identifier: Apache-2.0
// LoadBreaker: what failed for an adapter (bringing it into pages, building merged weights) is not tried again at once.
// It is left alone for a tenth of a second, doubled with each failure in a row, at most half a minute; then one try is
// worth it. Whoever asks for the adapter meanwhile is told so.
#pragma once

#include <unordered_map>

#include "lk/sched/request.h"

namespace lk {

class LoadBreaker {
 public:
  void failed(AdapterId adapter, Micros now);
  void forget(AdapterId adapter) { failures_.erase(adapter); }
  // The time from which on it may be tried; 0: it did not fail.
  Micros retry_at(AdapterId adapter) const {
    const auto it = failures_.find(adapter);
    return it == failures_.end() ? 0 : it->second.retry_at;
  }
  bool allows(AdapterId adapter, Micros now) const { return now >= retry_at(adapter); }
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
