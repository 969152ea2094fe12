// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/privacy_accounting.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lk/base/check.h"

namespace lk {
namespace {

constexpr int kMaxOrder = 1024;

// What a Renyi divergence of this order says (arXiv:2004.00010, proposition 12).
double epsilon_at(double order, double divergence, double delta) {
  return std::max(0.0, divergence + std::log1p(-1 / order) - std::log(delta * order) / (order - 1));
}

// Of one release, at a whole order: log of sum_k binomial(order, k) (1-q)^(order-k) q^k exp((k^2-k) / 2 noise^2)
// (arXiv:1908.10530, section 3.3). For whole orders it is the discrete Gaussian's as well.
double sampled_divergence(double noise, double rate, int order) {
  std::vector<double> terms;
  for (int k = 0; k <= order; ++k) {
    const double chosen = std::lgamma(order + 1.0) - std::lgamma(k + 1.0) - std::lgamma(order - k + 1.0);
    terms.push_back(chosen + k * std::log(rate) + (order - k) * std::log1p(-rate) +
                    (static_cast<double>(k) * k - k) / (2 * noise * noise));
  }
  const double largest = *std::ranges::max_element(terms);
  double sum = 0;
  for (const double term : terms) sum += std::exp(term - largest);
  return (largest + std::log(sum)) / (order - 1);
}

}  // namespace

double epsilon_of_gaussians(double noise, int64_t releases, double delta) {
  LK_CHECK(noise > 0 && releases >= 0 && delta > 0 && delta < 1);
  if (releases == 0) return 0;
  const double rho = static_cast<double>(releases) / (2 * noise * noise);
  double best = std::numeric_limits<double>::infinity();
  // Every order above 1 gives a bound; these are dense where the best one is.
  for (int step = 0; step <= 6000; ++step) {
    const double order = 1 + std::pow(10.0, -5 + 0.002 * step);
    best = std::min(best, epsilon_at(order, rho * order, delta));
  }
  return best;
}

double epsilon_of_sampled_gaussians(double noise, double rate, int64_t releases, double delta) {
  LK_CHECK(rate > 0 && rate <= 1);
  double best = epsilon_of_gaussians(noise, releases, delta);  // a sample hides more than all of them
  if (releases == 0 || rate == 1) return best;
  for (int order = 2; order <= kMaxOrder; order += 1 + order / 64)
    best = std::min(best,
                    epsilon_at(order, static_cast<double>(releases) * sampled_divergence(noise, rate, order), delta));
  return best;
}

}  // namespace lk
