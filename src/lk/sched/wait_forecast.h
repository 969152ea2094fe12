// SPDX-License-Identifier: Apache-2.0
// WaitForecast: how long a request will wait until it starts, by the rate at which prompts started lately (S-LoRA's
// early abort, arXiv:2311.03285 section 4.3, keeps moving averages of arrivals; here nothing is configured and starts
// are what is measured). The scheduler feeds it and refuses by it what would miss its deadline; a server tells its
// clients how long they would wait by the same rate.
#pragma once

#include "lk/sched/request.h"

namespace lk {

// Prompt tokens that start while some wait; a copy may be asked elsewhere.
class StartRate {
 public:
  StartRate() = default;
  explicit StartRate(double tokens_per_us) : tokens_per_us_(tokens_per_us) {}
  // Time until a request starts that has `tokens_ahead` prompt tokens before it; 0 while nothing was measured.
  Micros until_start(double tokens_ahead) const {
    return tokens_per_us_ > 0 ? static_cast<Micros>(tokens_ahead / tokens_per_us_) : 0;
  }

 private:
  double tokens_per_us_ = 0;  // 0: nothing was measured
};

class WaitForecast {
 public:
  // After each step: prompt tokens of the requests that ran for the first time in it, and whether some wait still. Only
  // while some wait does the rate of starts mean something: idle time does not count, and a sample goes on until
  // something started.
  void step_ended(Micros now, int64_t started_tokens, bool some_wait);

  StartRate rate() const { return StartRate(rate_); }

 private:
  double rate_ = 0;  // prompt tokens started per microsecond while some waited
  // The sample being taken.
  Micros last_end_ = 0, sampled_ = 0;
  int64_t tokens_ = 0;
  bool some_waited_ = false;
};

}  // namespace lk
