// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/step_shape.h"

namespace lk::sim {

ShapeBuilder::ShapeBuilder(std::vector<int64_t> ranks) : ranks_(std::move(ranks)), segment_of_(ranks_.size(), -1) {}

const StepShape& ShapeBuilder::build(const StepPlan& plan) {
  shape_.clear();
  shape_.num_tokens = plan.num_tokens;
  for (const StepItem& item : plan.items) {
    shape_.sequences.push_back({.rows = item.end - item.begin, .context = item.end});
    shape_.num_samples += item.sample;
    const AdapterId adapter = item.request->adapter;
    if (adapter == kBaseModel) continue;
    if (adapter == plan.merged) {
      shape_.merged_rows += item.end - item.begin;
      continue;
    }
    int32_t& segment = segment_of_[static_cast<size_t>(adapter)];
    if (segment < 0) {
      segment = static_cast<int32_t>(shape_.segments.size());
      shape_.segments.push_back({.rank = ranks_[static_cast<size_t>(adapter)]});
    }
    shape_.segments[static_cast<size_t>(segment)].rows += item.end - item.begin;
  }
  for (const StepItem& item : plan.items)
    if (item.request->adapter != kBaseModel) segment_of_[static_cast<size_t>(item.request->adapter)] = -1;
  return shape_;
}

}  // namespace lk::sim
