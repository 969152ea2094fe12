// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: value = hash(seed, counter). A request's draws depend on its seed and its
// position only, never on what else runs.  Mixer: splitmix64 finaliser (Steele, Lea, Flood 2014).
#pragma once

#include <cmath>
#include <cstdint>

namespace lk {

inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
inline uint64_t random_bits(uint64_t seed, uint64_t counter) {
  return mix64(mix64(seed) ^ (counter * 0xd1342543de82ef95ull + 1));
}
// Uniform in [0, 1), 53 bits.
inline double random_uniform(uint64_t seed, uint64_t counter) {
  return static_cast<double>(random_bits(seed, counter) >> 11) * 0x1.0p-53;
}
// Standard normal (Box-Muller on two counters).
inline double random_normal(uint64_t seed, uint64_t counter) {
  const double u1 = 1.0 - random_uniform(seed, 2 * counter);
  const double u2 = random_uniform(seed, 2 * counter + 1);
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586 * u2);
}

// A sequential generator over the same mixer, for tests and workloads.
class Rng {
 public:
  explicit Rng(uint64_t seed) : seed_(seed) {}
  uint64_t next() { return random_bits(seed_, counter_++); }
  uint64_t below(uint64_t bound) { return next() % bound; }  // bound >= 1
  double uniform() { return random_uniform(seed_, counter_++); }
  double normal() { return random_normal(seed_ ^ 0x5bd1e995, counter_++); }

 private:
  uint64_t seed_, counter_ = 0;
};

}  // namespace lk
