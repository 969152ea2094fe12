// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/load_breaker.h"

#include <algorithm>

namespace lk {
namespace {

constexpr Micros kFirstPause = 100'000, kLongestPause = 30'000'000;
constexpr int64_t kDoublings = 16;  // more than enough to reach the longest pause

}  // namespace

void LoadBreaker::failed(AdapterId adapter, Micros now) {
  Failure& failure = failures_[adapter];
  failure.retry_at = now + std::min(kLongestPause, kFirstPause << std::min(failure.in_a_row, kDoublings));
  ++failure.in_a_row;
}

Status LoadBreaker::check(AdapterId adapter, Micros now) const {
  if (allows(adapter, now)) return Status();
  const Failure& failure = failures_.at(adapter);
  return unavailable("the adapter could not be loaded ({} times in a row); tried again in {:.1f} s", failure.in_a_row,
                     static_cast<double>(failure.retry_at - now) / 1e6);
}

}  // namespace lk
