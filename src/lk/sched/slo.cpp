// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/slo.h"

#include <algorithm>

namespace lk {
namespace {

constexpr Micros kSample = 500'000;
constexpr double kNewest = 0.3;  // S-LoRA's weight of the newest sample

}  // namespace

void FirstTokenSlo::first_token_after(Micros start_to_first_token) {
  // Rises at once, falls slowly: a deadline missed costs a whole answer, one kept with room to spare costs nothing.
  if (start_to_first_token > lead_)
    lead_ = start_to_first_token;
  else
    lead_ += static_cast<Micros>(0.05 * static_cast<double>(start_to_first_token - lead_));
}

void FirstTokenSlo::step_ended(Micros now, int64_t started_tokens, bool someone_waits) {
  if (waited_) {
    sampled_ += now - last_end_;
    tokens_ += started_tokens;
  }
  waited_ = someone_waits;
  last_end_ = now;
  if (sampled_ < kSample || tokens_ == 0) return;
  const double rate = static_cast<double>(tokens_) / static_cast<double>(sampled_);
  rate_ = rate_ == 0 ? rate : rate_ + kNewest * (rate - rate_);
  sampled_ = 0;
  tokens_ = 0;
}

}  // namespace lk
