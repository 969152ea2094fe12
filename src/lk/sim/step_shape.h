// SPDX-License-Identifier: Apache-2.0
// From a step plan to the numbers its time depends on.
#pragma once

#include <vector>

#include "lk/sched/executor.h"
#include "lk/sim/cost_model.h"

namespace lk::sim {

class ShapeBuilder {
 public:
  explicit ShapeBuilder(std::vector<int64_t> ranks);  // by adapter id
  // Valid until the next call.
  const StepShape& build(const StepPlan& plan);

 private:
  const std::vector<int64_t> ranks_;
  std::vector<int32_t> segment_of_;  // by adapter: index into shape_.segments while building, else -1
  StepShape shape_;
};

}  // namespace lk::sim
