// SPDX-License-Identifier: Apache-2.0
#include "lk/load/arrivals.h"

#include <algorithm>

#include "lk/base/check.h"
#include "lk/base/variates.h"

namespace lk::load {

ArrivalProcess::ArrivalProcess(ArrivalKind kind, double rate, double cv, uint64_t seed)
    : kind_(kind), mean_gap_(1 / rate), cv_(cv), rng_(seed) {
  LK_CHECK(rate > 0 && cv > 0, "rate {} and cv {} must be positive", rate, cv);
}

double ArrivalProcess::next() {
  if (first_) {
    first_ = false;
    return 0;
  }
  switch (kind_) {
    case ArrivalKind::kConstant:
      time_ += mean_gap_;
      break;
    case ArrivalKind::kPoisson:
      time_ += sample_exponential(rng_) * mean_gap_;
      break;
    case ArrivalKind::kGamma:
      time_ += sample_gamma(rng_, 1 / (cv_ * cv_)) * cv_ * cv_ * mean_gap_;
      break;
  }
  return time_;
}

AdapterMix::AdapterMix(AdapterMixKind kind, int num_adapters, double alpha, uint64_t seed)
    : kind_(kind), num_adapters_(num_adapters), seed_(seed) {
  LK_CHECK(kind == AdapterMixKind::kNone || num_adapters > 0, "a mix needs adapters");
  if (kind != AdapterMixKind::kZipf) return;
  double total = 0;
  for (int i = 1; i <= num_adapters; ++i) cumulative_.push_back(total += std::pow(static_cast<double>(i), -alpha));
}

int AdapterMix::pick(int64_t request) const {
  switch (kind_) {
    case AdapterMixKind::kNone:
      return -1;
    case AdapterMixKind::kSame:
      return 0;
    case AdapterMixKind::kDistinct:
      return static_cast<int>(request % num_adapters_);
    case AdapterMixKind::kZipf:
      break;
  }
  const double at = random_uniform(seed_, static_cast<uint64_t>(request)) * cumulative_.back();
  return static_cast<int>(std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at) - cumulative_.begin());
}

}  // namespace lk::load
