// SPDX-License-Identifier: Apache-2.0
// MergeGate: all that the scheduler knows of merging (docs/design/merging.md). Whoever implements it keeps at most one
// adapter merged into a copy of the base's weights, in pages of the pool; the scheduler asks whom the next step may
// hold, and takes the pages back before anybody loses work.
//
// One step: plan(), the scheduler builds the step (give_back() whenever it finds no page), choose(), the step runs,
// observe(). Engine thread.
#pragma once

#include <span>

#include "lk/sched/executor.h"

namespace lk {

class MergeGate {
 public:
  // One request, running or waiting.
  struct Queued {
    AdapterId adapter = kBaseModel;
    int64_t rows = 0;          // it could put into the next step
    int64_t backlog_rows = 0;  // prompt and at most max_tokens still to be computed
  };
  // Whose requests the step being built may hold.
  struct Turn {
    AdapterId exclusive = kBaseModel;  // this adapter's alone; kBaseModel: everybody's
    std::span<const AdapterId> first;  // these adapters' before all others'; valid until the next plan()
  };

  virtual ~MergeGate() = default;
  // Before a step is built. `queue`: all requests, oldest first.
  virtual Turn plan(std::span<const Queued> queue, int64_t max_running, Micros now) = 0;
  // The step is built: sets plan.merged. Requires: it has items.
  virtual void choose(StepPlan& plan) = 0;
  // It was run.
  virtual void observe(const StepTimes& times) = 0;
  // Somebody finds no page: gives up what is being built, or else what is built. The adapter whose merged pages came
  // back to the pool; kBaseModel when there were none.
  virtual AdapterId give_back(Micros now) = 0;
  // The adapter is about to be dropped: on return nothing of it is built, being built or remembered.
  virtual void forget(AdapterId adapter) = 0;
};

}  // namespace lk
