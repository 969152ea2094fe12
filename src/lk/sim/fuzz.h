// SPDX-License-Identifier: Apache-2.0
// Random schedules with faults: each seed is one small machine, workload and fault mix, run with every invariant
// checked.
#pragma once

#include <functional>

#include "lk/sim/fleet_simulation.h"
#include "lk/sim/spec.h"

namespace lk::sim {

// The experiment of a seed. `vary` may change the options (a policy by the seed, and the max_bypass it allows); it may
// be empty.
using VaryOptions = std::function<void(SimOptions&, Rng&)>;
Result<Experiment> fuzz_experiment(uint64_t seed, const VaryOptions& vary);
// kInternal, naming the seed, when an invariant broke. A broken contract inside the scheduler or the pool aborts
// (LK_CHECK).
Result<SimResult> fuzz_one(uint64_t seed, const VaryOptions& vary);

// The same machine and workload, on a fleet of a random size, with random policies, routers and faults.
Result<FleetResult> fuzz_fleet(uint64_t seed);

}  // namespace lk::sim
