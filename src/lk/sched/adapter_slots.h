// SPDX-License-Identifier: Apache-2.0
// AdapterSlots: which adapters run together. At most `max` distinct ones (vLLM's max-loras; kernels and memory may want
// that); beyond `cluster` distinct ones, requests of adapters that already run go first (S-LoRA's adapter clustering,
// arXiv:2311.03285 §4.2). A request that finds no slot is passed over; when its tenant has fallen too far behind, one
// adapter is drained: nothing new of it is admitted until its slot is free.
#pragma once

#include <map>

#include "lk/sched/request.h"

namespace lk {

struct AdapterSlotOptions {
  int64_t max = 0;      // 0 = no limit
  int64_t cluster = 0;  // 0 = off
  int64_t drain_gap =
      4'000'000;  // of virtual time, milli-units: how far the blocked tenant may be behind one that runs
  Micros drain_wait = 5'000'000;  // or for how long it may be blocked
};

class AdapterSlots {
 public:
  explicit AdapterSlots(const AdapterSlotOptions& options) : options_(options) {}

  // A request of the adapter starts or stops to run. The base model takes no slot.
  void take(AdapterId adapter);
  void release(AdapterId adapter);
  // Whether a request of the adapter may start.
  bool admits(AdapterId adapter) const;
  // Whether those that already run go first now.
  bool clusters() const { return options_.cluster > 0 && num_running() >= options_.cluster; }
  bool runs(AdapterId adapter) const { return adapter == kBaseModel || running_.contains(adapter); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }

  // A request found no slot: it is `gap` behind the furthest tenant that runs, and blocked for `wait`. True when an
  // adapter should be drained for it; drain() says which.
  bool wants_drain(int64_t gap, Micros wait) const;
  void drain(AdapterId adapter);

 private:
  const AdapterSlotOptions options_;
  std::map<AdapterId, int64_t> running_;  // requests
  AdapterId draining_ = kBaseModel;       // none
};

}  // namespace lk
