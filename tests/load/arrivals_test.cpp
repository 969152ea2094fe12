// SPDX-License-Identifier: Apache-2.0
#include "lk/load/arrivals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lk::load {
namespace {

struct Moments {
  double mean = 0, cv = 0;
};

Moments gap_moments(ArrivalKind kind, double rate, double cv, uint64_t seed, int count) {
  ArrivalProcess process(kind, rate, cv, seed);
  double last = process.next(), sum = 0, squares = 0;
  EXPECT_EQ(last, 0);
  for (int i = 0; i < count; ++i) {
    const double time = process.next(), gap = time - last;
    EXPECT_GE(gap, 0);
    last = time;
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / count;
  return {.mean = mean, .cv = std::sqrt(squares / count - mean * mean) / mean};
}

TEST(ArrivalProcess, ConstantGapsAreConstant) {
  const Moments moments = gap_moments(ArrivalKind::kConstant, 4, 1, 1, 1000);
  EXPECT_NEAR(moments.mean, 0.25, 1e-9);
  EXPECT_NEAR(moments.cv, 0, 1e-5);
}

TEST(ArrivalProcess, PoissonGapsHaveTheRateAndUnitVariation) {
  for (const double rate : {0.5, 20.0, 3000.0}) {
    const Moments moments = gap_moments(ArrivalKind::kPoisson, rate, 7, 3, 200'000);
    EXPECT_NEAR(moments.mean * rate, 1, 0.01);  // standard error 0.0022
    EXPECT_NEAR(moments.cv, 1, 0.02);
  }
}

TEST(ArrivalProcess, GammaGapsHaveTheRateAndTheVariationAskedFor) {
  for (const double cv : {0.25, 0.5, 1.0, 2.0, 4.0}) {
    const Moments moments = gap_moments(ArrivalKind::kGamma, 10, cv, 5, 400'000);
    EXPECT_NEAR(moments.mean * 10, 1, 0.005 + 0.007 * cv) << cv;  // about 4 standard errors cv / sqrt(n)
    EXPECT_NEAR(moments.cv / cv, 1, 0.01 + 0.02 * cv) << cv;
  }
}

TEST(ArrivalProcess, DependsOnTheSeedOnly) {
  ArrivalProcess a(ArrivalKind::kGamma, 1, 2, 9), same(ArrivalKind::kGamma, 1, 2, 9),
      other(ArrivalKind::kGamma, 1, 2, 10);
  int differing = 0;
  for (int i = 0; i < 100; ++i) {
    const double time = a.next();
    EXPECT_EQ(time, same.next());
    differing += time != other.next();
  }
  EXPECT_GE(differing, 99);
}

TEST(ArrivalProcess, AnInfiniteRateSendsAllAtOnce) {
  for (const ArrivalKind kind : {ArrivalKind::kConstant, ArrivalKind::kPoisson, ArrivalKind::kGamma}) {
    ArrivalProcess process(kind, std::numeric_limits<double>::infinity(), 2, 1);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(process.next(), 0);
  }
}

TEST(AdapterMix, NoneSameAndDistinct) {
  const AdapterMix none(AdapterMixKind::kNone, 0, 1, 1), same(AdapterMixKind::kSame, 3, 1, 1),
      distinct(AdapterMixKind::kDistinct, 3, 1, 1);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(none.pick(i), -1);
    EXPECT_EQ(same.pick(i), 0);
    EXPECT_EQ(distinct.pick(i), i % 3);
  }
}

TEST(AdapterMix, ZipfFrequenciesFollowTheLaw) {
  constexpr int kAdapters = 50, kDraws = 200'000;
  for (const double alpha : {0.0, 1.0, 1.5}) {
    const AdapterMix mix(AdapterMixKind::kZipf, kAdapters, alpha, 42);
    std::vector<int> counts(kAdapters);
    for (int i = 0; i < kDraws; ++i) ++counts.at(static_cast<size_t>(mix.pick(i)));
    double total = 0;
    for (int i = 1; i <= kAdapters; ++i) total += std::pow(i, -alpha);
    for (int i = 0; i < kAdapters; ++i) {
      const double expected = kDraws * std::pow(i + 1, -alpha) / total;
      EXPECT_NEAR(counts[static_cast<size_t>(i)], expected, 5 * std::sqrt(expected))
          << "adapter " << i << ", alpha " << alpha;
    }
  }
}

}  // namespace
}  // namespace lk::load
