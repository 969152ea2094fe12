// SPDX-License-Identifier: Apache-2.0
// What task vectors (arXiv:2212.04089) are pruned and merged by: magnitude, DARE (arXiv:2311.03099), TIES
// (arXiv:2306.01708). The rules are those of PEFT's merge_utils, so that results can be compared; random masks come
// from counters instead of a generator's state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lk {

enum class SignElection : uint8_t {
  kTotal,      // the sign of the sum
  kFrequency,  // that of most
};

// Keeps the floor(density * n) values of the largest magnitude, the others become 0. density >= 1 keeps all.
void prune_by_magnitude(std::span<float> values, double density);
// Keeps each value with probability `density`, divided by it, so that the mean stays. density >= 1 keeps all.
void prune_at_random(std::span<float> values, double density, uint64_t seed);

// sum of weight_i tasks_i. All tasks have the size of the result.
std::vector<float> sum_tasks(std::span<const std::vector<float>> tasks, std::span<const float> weights);
// For each element the tasks whose sign is the elected one are weighted and divided by their number. The election is of
// the tasks as they are, before their weights: PEFT's order, also for negative weights.
std::vector<float> merge_by_sign(std::span<const std::vector<float>> tasks, std::span<const float> weights,
                                 SignElection election);

}  // namespace lk
