// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/wait_forecast.h"

namespace lk {
namespace {

constexpr Micros kSample = 500'000;
constexpr double kNewest = 0.3;  // S-LoRA's weight of the newest sample

}  // namespace

void WaitForecast::step_ended(Micros now, int64_t started_tokens, bool some_wait) {
  if (some_waited_) {
    sampled_ += now - last_end_;
    tokens_ += started_tokens;
  }
  some_waited_ = some_wait;
  last_end_ = now;
  if (sampled_ < kSample || tokens_ == 0) return;
  const double rate = static_cast<double>(tokens_) / static_cast<double>(sampled_);
  rate_ = rate_ == 0 ? rate : rate_ + kNewest * (rate - rate_);
  sampled_ = 0;
  tokens_ = 0;
}

}  // namespace lk
