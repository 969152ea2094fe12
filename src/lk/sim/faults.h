// SPDX-License-Identifier: Apache-2.0
// Faults: seeded misbehaviour at named points of a simulation, so that rare schedules happen often. Everything off by
// default. After the idea of "buggify" points in deterministic simulation (FoundationDB).
#pragma once

#include <cstdint>

#include "lk/base/rng.h"

namespace lk::sim {

// Probabilities in [0, 1].
struct FaultOptions {
  double load_failure = 0;   // per load
  double slow_load = 0;      // per load: up to 100 times as long
  double slow_step = 0;      // per step: up to 50 times as long
  double cancel = 0;         // per step: a request, waiting or running, is cancelled
  double time_jump = 0;      // per step: the clock jumps up to a minute ahead
  double pin = 0;            // per step: some adapter is pinned, or let go: less room for everybody
  double merge_failure = 0;  // per build of merged weights: refused at its end, as when rounding loses too much
  double slow_merge = 0;     // per build: up to 1,000 times as long
  uint64_t seed = 0;
  bool any() const {
    return load_failure + slow_load + slow_step + cancel + time_jump + pin + merge_failure + slow_merge > 0;
  }
};

class Faults {
 public:
  explicit Faults(const FaultOptions& options) : options_(options), rng_(options.seed ^ 0xb0661f7ull) {}

  bool load_fails() { return hit(options_.load_failure); }
  double load_factor() { return hit(options_.slow_load) ? 1 + 99 * rng_.uniform() : 1; }
  double step_factor() { return hit(options_.slow_step) ? 1 + 49 * rng_.uniform() : 1; }
  bool merge_fails() { return hit(options_.merge_failure); }
  double merge_factor() { return hit(options_.slow_merge) ? 1 + 999 * rng_.uniform() : 1; }
  bool cancels() { return hit(options_.cancel); }
  bool pins() { return hit(options_.pin); }
  // Microseconds to jump ahead; 0 = no jump.
  int64_t time_jump_us() { return hit(options_.time_jump) ? static_cast<int64_t>(rng_.uniform() * 60e6) : 0; }
  // Which one of `bound` (>= 1) things it hits.
  uint64_t pick(uint64_t bound) { return rng_.below(bound); }
  const FaultOptions& options() const { return options_; }

 private:
  bool hit(double probability) { return probability > 0 && rng_.uniform() < probability; }
  FaultOptions options_;
  Rng rng_;
};

}  // namespace lk::sim
