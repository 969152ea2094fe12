// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/adapter_slots.h"

#include "lk/base/check.h"

namespace lk {

void AdapterSlots::take(AdapterId adapter) {
  if (adapter != kBaseModel) ++running_[adapter];
}

void AdapterSlots::release(AdapterId adapter) {
  if (adapter == kBaseModel) return;
  const auto it = running_.find(adapter);
  LK_CHECK(it != running_.end());
  if (--it->second > 0) return;
  running_.erase(it);
  if (draining_ == adapter) draining_ = kBaseModel;
}

bool AdapterSlots::admits(AdapterId adapter) const {
  if (adapter == kBaseModel || options_.max <= 0) return true;
  if (adapter == draining_) return false;
  return running_.contains(adapter) || num_running() < options_.max;
}

bool AdapterSlots::wants_drain(int64_t gap, Micros wait) const {
  return draining_ == kBaseModel && (gap > options_.drain_gap || wait > options_.drain_wait);
}

void AdapterSlots::drain(AdapterId adapter) {
  LK_CHECK(running_.contains(adapter));
  draining_ = adapter;
}

}  // namespace lk
