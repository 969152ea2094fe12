// SPDX-License-Identifier: Apache-2.0
#include "lk/base/variates.h"

#include "lk/base/check.h"

namespace lk {

double sample_gamma(Rng& rng, double shape) {
  LK_CHECK(shape > 0, "a Gamma variate needs a positive shape, got {}", shape);
  // Below 1 the method does not apply: Gamma(a) = Gamma(a + 1) * U^(1/a).
  if (shape < 1) return sample_gamma(rng, shape + 1) * std::pow(1 - rng.uniform(), 1 / shape);
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  while (true) {
    const double x = rng.normal(), base = 1 + c * x;
    if (base <= 0) continue;
    const double v = base * base * base;
    if (std::log(1 - rng.uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

double sample_exponential(Rng& rng) { return -std::log(1 - rng.uniform()); }

}  // namespace lk
