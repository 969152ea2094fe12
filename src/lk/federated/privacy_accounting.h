// SPDX-License-Identifier: Apache-2.0
// What releases with Gaussian noise cost: (epsilon, delta) of all of them together, for one client's records. `noise`
// is the standard deviation over the longest update that a client can send; `releases` follow one another, and each may
// depend on those before it. Bounds, never below the truth; both are those of Renyi differential privacy.
#pragma once

#include <cstdint>

namespace lk {

// The client was in `releases` sums, and who was in them is no secret: whoever chose clients, by whatever draw that
// does not look at records. Zero-concentrated: rho = releases / (2 noise^2).
double epsilon_of_gaussians(double noise, int64_t releases, double delta);

// Each client was in each of the sums with probability `rate` in (0, 1], independently of all others (Poisson
// sampling), and nobody who sees the releases knows in which. For samples of a fixed size it does not hold.
double epsilon_of_sampled_gaussians(double noise, double rate, int64_t releases, double delta);

}  // namespace lk
