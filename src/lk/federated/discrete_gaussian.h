// SPDX-License-Identifier: Apache-2.0
// Noise for differential privacy, on the integers: P(x) ~ exp(-x^2 / 2 sigma^2). Drawn exactly, by integers alone, so
// that no low bits of floating-point arithmetic tell what was below the noise (Mironov 2012); its privacy is that of
// the continuous one (arXiv:2004.00010, theorem 4: rho = sensitivity^2 / 2 sigma^2, for integer sums).
#pragma once

#include <cstdint>

#include "lk/base/secret_random.h"

namespace lk {

// sigma in [1, 2^30].
int64_t draw_discrete_gaussian(KeyStream& random, int64_t sigma);

}  // namespace lk
