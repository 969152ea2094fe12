// SPDX-License-Identifier: Apache-2.0
// WaitForecast: how long a request will wait until it starts, by the rate at which prompts started lately (S-LoRA's
// early abort, arXiv:2311.03285 section 4.3, keeps moving averages of arrivals; here nothing is configured and starts
// are what is measured). The scheduler feeds it and refuses by it what would miss its deadline; a server may ask the
// same one for the wait it tells its clients.
#pragma once

#include "lk/sched/request.h"

namespace lk {

class WaitForecast {
 public:
  // After each step: prompt tokens of the requests that ran for the first time in it, and whether some wait still. Only
  // while some wait does the rate of starts mean something: idle time does not count, and a sample goes on until
  // something started.
  void step_ended(Micros now, int64_t started_tokens, bool some_wait);

  // Prompt tokens a second that start while some wait; 0 while nothing was measured.
  double tokens_per_second() const { return rate_ * 1e6; }
  // Time until a request starts that has `tokens_ahead` prompt tokens before it; 0 while nothing was measured.
  Micros until_start(double tokens_ahead) const { return rate_ > 0 ? static_cast<Micros>(tokens_ahead / rate_) : 0; }

 private:
  double rate_ = 0;  // prompt tokens started per microsecond while some waited
  // The sample being taken.
  Micros last_end_ = 0, sampled_ = 0;
  int64_t tokens_ = 0;
  bool some_waited_ = false;
};

}  // namespace lk
