// SPDX-License-Identifier: Apache-2.0
// When requests arrive and whom they ask: the two random processes of a load. Both depend on their seed only.
#pragma once

#include <cstdint>
#include <vector>

#include "lk/base/rng.h"

namespace lk::load {

enum class ArrivalKind { kConstant, kPoisson, kGamma };

// Arrival times in seconds, the first at 0. Gaps have mean 1 / rate; their coefficient of variation (deviation / mean)
// is 0 for constant, 1 for Poisson and `cv` for Gamma arrivals. An infinite rate puts every arrival at 0.
class ArrivalProcess {
 public:
  // Requires: rate > 0, cv > 0.
  ArrivalProcess(ArrivalKind kind, double rate, double cv, uint64_t seed);
  double next();

 private:
  ArrivalKind kind_;
  double mean_gap_, cv_, time_ = 0;
  bool first_ = true;
  Rng rng_;
};

enum class AdapterMixKind { kNone, kSame, kDistinct, kZipf };

// Which adapter a request uses: none; always the first; each in turn; or the i-th (from 1) with probability
// proportional to i^-alpha.
class AdapterMix {
 public:
  AdapterMix(AdapterMixKind kind, int num_adapters, double alpha, uint64_t seed);
  int pick(int64_t request) const;  // -1 = the base model

 private:
  AdapterMixKind kind_;
  int num_adapters_;
  uint64_t seed_;
  std::vector<double> cumulative_;
};

}  // namespace lk::load
