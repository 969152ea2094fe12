// SPDX-License-Identifier: Apache-2.0
// FirstTokenSlo: who can still have a first token in time. Rates are measured, not configured (S-LoRA's early abort,
// arXiv:2311.03285 §4.3, keeps moving averages of arrivals; this keeps one of starts and one of the time from start to
// first token).
#pragma once

#include "lk/sched/request.h"

namespace lk {

struct SloOptions {
  Micros first_token = 0;  // after arrival; 0 = none
  // Refuse on arrival what by forecast would miss it; else only what has certainly missed it is ended.
  bool refuse_early = true;
};

class FirstTokenSlo {
 public:
  explicit FirstTokenSlo(const SloOptions& options) : options_(options) {}

  Micros deadline(Micros arrival) const {
    return options_.first_token > 0 ? arrival + options_.first_token : kNoDeadline;
  }
  // The last moment at which a request should start to have its first token by `deadline`.
  Micros start_by(Micros deadline) const { return deadline - lead_; }
  // Time until a request starts that has `tokens_ahead` prompt tokens before it; 0 while nothing was measured.
  Micros forecast(double tokens_ahead) const { return rate_ > 0 ? static_cast<Micros>(tokens_ahead / rate_) : 0; }
  bool refuses_early() const { return options_.refuse_early; }

  // --- Measurements
  void first_token_after(Micros start_to_first_token);
  // At the end of each step: prompt tokens of requests that started in it, whether some wait still.
  void step_ended(Micros now, int64_t started_tokens, bool someone_waits);

 private:
  const SloOptions options_;
  Micros lead_ = 0;
  double rate_ = 0;  // prompt tokens started per microsecond while some waited
  // The sample being taken.
  Micros last_end_ = 0, sampled_ = 0;
  int64_t tokens_ = 0;
  bool waited_ = false;
};

}  // namespace lk
