// SPDX-License-Identifier: Apache-2.0
#include "lk/train/run_plan.h"

#include <algorithm>
#include <string>
#include <vector>

#include "lk/base/bytes.h"

namespace lk {

Result<RunPlan> plan_run(const RunConfig& run, std::shared_ptr<const ModelWeights> weights, Backend& backend,
                         std::span<const PlannedJob> jobs, int64_t available) {
  RunPlan plan{.memory = {.base = weights->packed_bytes + weights->embedding.num_bytes()},
               .pass = {.max_rows = run.block_tokens, .needs = {.lowest_layer = INT64_MAX}}};
  TrainMemory& memory = plan.memory;
  for (const PlannedJob& job : jobs) {
    memory.states += job.state_bytes;
    memory.copy = std::max(memory.copy, job.copy_bytes);
    plan.pass.needs = plan.pass.needs.include(job.needs);
  }
  const int64_t left = run.memory_bytes > 0 ? run.memory_bytes - memory.base : available;
  const int64_t fixed = memory.states + memory.copy;
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
      "training needs {} and has {}: base {}, states of {} jobs {}, one being saved {}, activations of {} tokens {} "
      "(checkpointing {}); {}",
      format_bytes(memory.total()), format_bytes(left + memory.base), format_bytes(memory.base), jobs.size(),
      format_bytes(memory.states), format_bytes(memory.copy), run.block_tokens, format_bytes(memory.activations),
      to_string(memory.checkpointing),
      fits > 0 ? fmt::format("a block of {} tokens fits", fits) : "train fewer jobs at once, or smaller ones");
}

}  // namespace lk
