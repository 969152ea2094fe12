// SPDX-License-Identifier: Apache-2.0
// What a run will take, known before it starts: memory, and how much of the activations is computed again to stay
// within it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "lk/train/job_config.h"
#include "lk/train/train_pass.h"

namespace lk {

// What the process and the machine have when a run is planned. Bytes.
struct MemoryNow {
  int64_t available = 0;  // that the machine has left, beside what this process holds
  int64_t held = 0;       // by this process beside the base: the program, the tokenizer, where records lie
  int64_t reserved = 0;   // what the engine that answers evaluations may yet take of it
};

// Bytes, all at once.
struct TrainMemory {
  int64_t base = 0, held = 0, reserved = 0, states = 0, activations = 0;
  // Of the largest adapter, while it is made or saved, or of what EVA learns about its inputs: one at a time.
  int64_t one_adapter = 0;
  Checkpointing checkpointing = Checkpointing::kNone;
  int64_t total() const { return base + held + reserved + states + activations + one_adapter; }
};

// As the parts of a sentence, for people.
std::string memory_text(const TrainMemory& memory, size_t num_jobs, int64_t block_tokens);

// Of the weights, packed, and the embedding.
int64_t base_bytes(const ModelWeights& weights);

struct RunPlan {
  TrainMemory memory;
  TrainPassOptions pass;
};
// What of a job's adapter matters to it: PassNeeds with room for all it may become.
struct PlannedJob {
  int64_t state_bytes = 0;
  int64_t making_bytes = 0;    // while it is made or saved
  int64_t longest_sample = 0;  // tokens
  PassNeeds needs;
};

// The least that is computed again and still fits the memory: run.memory_bytes for everything, or what is available
// beside what is there already. kResourceExhausted names the largest block that would fit.
Result<RunPlan> plan_run(const RunConfig& run, std::shared_ptr<const ModelWeights> weights, Backend& backend,
                         std::span<const PlannedJob> jobs, const MemoryNow& now);

}  // namespace lk
