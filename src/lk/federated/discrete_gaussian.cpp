// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/discrete_gaussian.h"

#include "lk/base/check.h"

namespace lk {
namespace {

__extension__ typedef unsigned __int128 Wide;  // squares of what is beyond sigma

// With probability exp(-n / d), n <= d: the count of successes of chances n/d / 1, n/d / 2, ... is even exactly so
// often (von Neumann; arXiv:2004.00010, algorithm 1). `d` is a power of two or small.
bool happens_below_one(KeyStream& random, uint64_t n, uint64_t d) {
  uint64_t k = 1;
  while ((k == 1 || random.below(k) == 0) && random.below(d) < n) ++k;
  return k % 2 == 1;
}

// With probability exp(-n / d).
bool happens(KeyStream& random, Wide n, uint64_t d) {
  for (; n > d; n -= d)
    if (!happens_below_one(random, 1, 1)) return false;
  return happens_below_one(random, static_cast<uint64_t>(n), d);
}

// P(x) ~ exp(-|x| / scale): algorithm 2 there.
int64_t draw_discrete_laplace(KeyStream& random, int64_t scale) {
  const auto width = static_cast<uint64_t>(scale);
  for (;;) {
    const uint64_t within = random.below(width);
    if (!happens_below_one(random, within, width)) continue;
    int64_t times = 0;
    while (happens_below_one(random, 1, 1)) ++times;
    const int64_t size = static_cast<int64_t>(within) + scale * times;
    const bool negative = random.coin();
    if (negative && size == 0) continue;  // else zero came twice as often
    return negative ? -size : size;
  }
}

}  // namespace

// Algorithm 3 there, with a Laplace distribution of scale sigma, for which |y| - sigma^2 / scale is whole.
int64_t draw_discrete_gaussian(KeyStream& random, int64_t sigma) {
  LK_CHECK(sigma >= 1 && sigma <= int64_t{1} << 30);
  for (;;) {
    const int64_t y = draw_discrete_laplace(random, sigma);
    const int64_t beyond = (y < 0 ? -y : y) - sigma;
    const auto distance = static_cast<Wide>(beyond < 0 ? -beyond : beyond);
    if (happens(random, distance * distance, 2 * static_cast<uint64_t>(sigma) * static_cast<uint64_t>(sigma))) return y;
  }
}

}  // namespace lk
