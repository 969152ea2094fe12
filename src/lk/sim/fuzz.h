// SPDX-License-Identifier: Apache-2.0
// Random schedules with faults: each seed is one small machine, workload and fault mix, run with every invariant checked.
#pragma once

#include <functional>

#include "lk/sim/spec.h"

namespace lk::sim {

// The experiment of a seed. `vary` may change the scheduler's options (a policy by the seed); it may be empty.
using VaryScheduler = std::function<void(SchedulerOptions&, Rng&)>;
Result<Experiment> fuzz_experiment(uint64_t seed, const VaryScheduler& vary);
// kInternal, naming the seed, when an invariant broke. A broken contract inside the scheduler or the pool aborts (LK_CHECK).
Result<SimResult> fuzz_one(uint64_t seed, const VaryScheduler& vary);

}  // namespace lk::sim
