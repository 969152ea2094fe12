// SPDX-License-Identifier: Apache-2.0
#include "lk/train/run_plan.h"

#include <algorithm>
#include <string>
#include <vector>

#include "lk/base/bytes.h"

namespace lk {

int64_t base_bytes(const ModelWeights& weights) { return weights.packed_bytes + weights.embedding.num_bytes(); }

std::string memory_text(const TrainMemory& memory, size_t num_jobs, int64_t block_tokens) {
  return fmt::format(
      "base {}, program and data {}{}, states of {} jobs {}, making or saving one {}, activations of {} tokens {}",
      format_bytes(memory.base), format_bytes(memory.held),
      memory.reserved > 0 ? fmt::format(", engine for answers {}", format_bytes(memory.reserved)) : "", num_jobs,
      format_bytes(memory.states), format_bytes(memory.one_adapter), block_tokens, format_bytes(memory.activations));
}

Result<RunPlan> plan_run(const RunConfig& run, std::shared_ptr<const ModelWeights> weights, Backend& backend,
                         std::span<const PlannedJob> jobs, const MemoryNow& now) {
  RunPlan plan{.memory = {.base = base_bytes(*weights), .held = now.held, .reserved = now.reserved},
               .pass = {.max_rows = run.block_tokens, .needs = {.lowest_layer = INT64_MAX}}};
  TrainMemory& memory = plan.memory;
  for (const PlannedJob& job : jobs) {
    memory.states += job.state_bytes;
    memory.one_adapter = std::max(memory.one_adapter, job.making_bytes);
    plan.pass.longest_sample = std::max(plan.pass.longest_sample, job.longest_sample);
    plan.pass.needs = plan.pass.needs.include(job.needs);
  }
  const int64_t there = memory.base + memory.held;
  const int64_t left = run.memory_bytes > 0 ? run.memory_bytes - there : now.available;
  const int64_t fixed = memory.reserved + memory.states + memory.one_adapter;
  const auto activations = [&](int64_t rows) {
    TrainPassOptions options = plan.pass;
    options.max_rows = rows;
    return TrainPass::memory_bytes(weights, backend, options);
  };
  std::vector<Checkpointing> levels{Checkpointing::kNone, Checkpointing::kSelective, Checkpointing::kFull};
  if (run.checkpointing) levels = {*run.checkpointing};
  for (const Checkpointing level : levels) {
    plan.pass.checkpointing = memory.checkpointing = level;
    memory.activations = activations(run.block_tokens);
    if (memory.activations + fixed <= left) return plan;
  }
  int64_t fits = 0;  // the largest block that does, by bisection
  for (int64_t step = run.block_tokens; step > 0; step /= 2)
    if (fits + step < run.block_tokens && activations(fits + step) + fixed <= left) fits += step;
  return resource_exhausted(
      "training needs {} and has {}: {} (checkpointing {}); {}", format_bytes(memory.total()),
      format_bytes(left + there), memory_text(memory, jobs.size(), run.block_tokens), to_string(memory.checkpointing),
      fits > 0 ? fmt::format("a block of {} tokens fits", fits) : "train fewer jobs at once, or smaller ones");
}

}  // namespace lk
