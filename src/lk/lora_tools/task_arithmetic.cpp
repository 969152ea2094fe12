// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/task_arithmetic.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lk/base/check.h"
#include "lk/base/rng.h"

namespace lk {

void prune_by_magnitude(std::span<float> values, double density) {
  if (density >= 1) return;
  const auto keep = static_cast<size_t>(density * static_cast<double>(values.size()));
  // Of equal magnitudes the earlier one stays: the order is total, so that the result is one.
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  const auto larger = [&](uint32_t x, uint32_t y) {
    const float left = std::abs(values[x]), right = std::abs(values[y]);
    return left != right ? left > right : x < y;
  };
  std::ranges::nth_element(order, order.begin() + static_cast<ptrdiff_t>(std::min(keep, order.size())), larger);
  for (size_t rest = keep; rest < order.size(); ++rest) values[order[rest]] = 0;
}

void prune_at_random(std::span<float> values, double density, uint64_t seed) {
  if (density >= 1) return;
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = random_uniform(seed, i) < density ? values[i] / static_cast<float>(density) : 0.0f;
}

std::vector<float> sum_tasks(std::span<const std::vector<float>> tasks, std::span<const float> weights) {
  LK_CHECK(!tasks.empty() && tasks.size() == weights.size());
  std::vector<float> sum(tasks[0].size());
  for (size_t t = 0; t < tasks.size(); ++t)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += weights[t] * tasks[t][i];
  return sum;
}

std::vector<float> merge_by_sign(std::span<const std::vector<float>> tasks, std::span<const float> weights,
                                 SignElection election) {
  LK_CHECK(!tasks.empty() && tasks.size() == weights.size());
  std::vector<float> merged(tasks[0].size());
  for (size_t i = 0; i < merged.size(); ++i) {
    float vote = 0;
    for (const std::vector<float>& task : tasks)
      vote += election == SignElection::kTotal ? task[i] : static_cast<float>((task[i] > 0) - (task[i] < 0));
    const bool positive = vote >= 0;  // a tie is positive
    float sum = 0, agreeing = 0;
    for (size_t t = 0; t < tasks.size(); ++t) {
      if (tasks[t][i] == 0 || (tasks[t][i] > 0) != positive) continue;
      sum += weights[t] * tasks[t][i];
      agreeing += 1;
    }
    merged[i] = agreeing > 0 ? sum / agreeing : 0.0f;
  }
  return merged;
}

}  // namespace lk
