// SPDX-License-Identifier: Apache-2.0
// FirstTokenSlo: by when a request has to start to have its first token in time. The time from start to first token is
// measured, not configured.
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
  bool refuses_early() const { return options_.refuse_early; }

  // Measured. Rises at once, falls slowly: a deadline missed costs a whole answer, one kept with room to spare costs
  // nothing.
  void first_token_after(Micros start_to_first_token) {
    if (start_to_first_token > lead_)
      lead_ = start_to_first_token;
    else
      lead_ += static_cast<Micros>(0.05 * static_cast<double>(start_to_first_token - lead_));
  }

 private:
  const SloOptions options_;
  Micros lead_ = 0;
};

}  // namespace lk
