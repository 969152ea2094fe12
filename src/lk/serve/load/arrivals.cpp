// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/load/arrivals.h"

#include <algorithm>

#include "lk/base/check.h"

namespace lk::load {

double sample_gamma(Rng& rng, double shape) {
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

ArrivalProcess::ArrivalProcess(ArrivalKind kind, double rate, double cv, uint64_t seed) : kind_(kind), mean_gap_(1 / rate), cv_(cv), rng_(seed) {
  LK_CHECK(rate > 0 && cv > 0, "rate {} and cv {} must be positive", rate, cv);
}

double ArrivalProcess::next() {
  if (first_) {
    first_ = false;
    return 0;
  }
  switch (kind_) {
    case ArrivalKind::kConstant: time_ += mean_gap_; break;
    case ArrivalKind::kPoisson: time_ += -std::log(1 - rng_.uniform()) * mean_gap_; break;
    case ArrivalKind::kGamma: time_ += sample_gamma(rng_, 1 / (cv_ * cv_)) * cv_ * cv_ * mean_gap_; break;
  }
  return time_;
}

AdapterMix::AdapterMix(AdapterMixKind kind, int num_adapters, double alpha, uint64_t seed) : kind_(kind), num_adapters_(num_adapters), seed_(seed) {
  LK_CHECK(kind == AdapterMixKind::kNone || num_adapters > 0, "a mix needs adapters");
  if (kind != AdapterMixKind::kZipf) return;
  double total = 0;
  for (int i = 1; i <= num_adapters; ++i) cumulative_.push_back(total += std::pow(static_cast<double>(i), -alpha));
}

int AdapterMix::pick(int64_t request) const {
  switch (kind_) {
    case AdapterMixKind::kNone: return -1;
    case AdapterMixKind::kSame: return 0;
    case AdapterMixKind::kDistinct: return static_cast<int>(request % num_adapters_);
    case AdapterMixKind::kZipf: break;
  }
  const double at = random_uniform(seed_, static_cast<uint64_t>(request)) * cumulative_.back();
  return static_cast<int>(std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at) - cumulative_.begin());
}

}  // namespace lk::load
