// SPDX-License-Identifier: Apache-2.0
// Random variates that more than one kind of workload draws.
#pragma once

#include "lk/base/rng.h"

namespace lk {

// A Gamma variate of the given shape (> 0) and scale 1. Source: Marsaglia and Tsang, "A simple method for generating
// gamma variables" (2000).
double sample_gamma(Rng& rng, double shape);
// An exponential variate of mean 1.
double sample_exponential(Rng& rng);

}  // namespace lk
