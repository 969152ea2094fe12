// SPDX-License-Identifier: Apache-2.0
// What a run will take, known before it starts: memory, and how much of the activations is computed again to stay
// within it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "lk/train/job_config.h"
#include "lk/train/train_pass.h"

namespace lk {

// Bytes, all at once.
struct TrainMemory {
  int64_t base = 0, states = 0, activations = 0;
  int64_t copy = 0;  // of the largest adapter, while it is made or saved: one at a time
  Checkpointing checkpointing = Checkpointing::kNone;
  int64_t total() const { return base + states + activations + copy; }
};

struct RunPlan {
  TrainMemory memory;
  TrainPassOptions pass;
};
// What of a job's adapter matters to it: PassNeeds with room for all it may become.
struct PlannedJob {
  int64_t state_bytes = 0, copy_bytes = 0;
  PassNeeds needs;
};

// The least that is computed again and still fits the memory: run.memory_bytes for everything, or what `available`
// says beside the base, which is there already. kResourceExhausted names the largest block that would fit.
Result<RunPlan> plan_run(const RunConfig& run, std::shared_ptr<const ModelWeights> weights, Backend& backend,
                         std::span<const PlannedJob> jobs, int64_t available);

}  // namespace lk
