// SPDX-License-Identifier: Apache-2.0
// Which adapter to merge, and which steps to run merged. A chooser is pure policy: it sees counts and measured times,
// has no clock, thread or page of its own, and forgets nothing it was not told. docs/design/merging.md explains the
// policies, docs/results/merging.md has their measurements.
//
// One step: plan(), the scheduler plans, merged(), the step runs, observe(). built() whenever a merge ended. None of
// these allocates once the chooser has seen the like of the step.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "lk/sched/executor.h"

namespace lk {

// The requests of one adapter, running and waiting.
struct MergeCandidate {
  AdapterId adapter = kBaseModel;
  bool allowed = false;  // may be merged: not exact, not refused before, not too big
  int64_t requests = 0;
  int64_t rows = 0;            // it could put into the next step
  int64_t backlog_rows = 0;    // prompt and at most max_tokens still to be computed: an upper bound
  double relative_cost = 0;    // of its delta, MergeFootprint
  double build_cost_rows = 0;  // MergeFootprint
};

struct MergeView {
  Micros now = 0;
  int64_t max_running = 0;                 // requests per step
  std::vector<AdapterId> queue;            // the adapter of each request, oldest first
  std::vector<MergeCandidate> candidates;  // every adapter in the queue once; the base is not in it
  AdapterId built = kBaseModel;            // whose merged weights can be used now
  AdapterId building = kBaseModel;
  Micros longest_wait = 0;  // since a request that is not of `built` last had a step (or arrived)
};

struct MergePlan {
  AdapterId build =
      kBaseModel;  // start building this one, in place of what is built or being built if there is no room for both
  AdapterId exclusive = kBaseModel;  // only this adapter's requests in the next step; it is `built`
  // Their requests before all others', because they starve. Valid until the next plan().
  std::span<const AdapterId> first;
};

// Rows of one adapter (or the base) in a planned step.
struct AdapterRows {
  AdapterId adapter = kBaseModel;
  bool allowed = false;
  int64_t rows = 0;
  double relative_cost = 0;
  int64_t requests = 0;
};
struct StepMix {
  std::vector<AdapterRows> adapters;
  int64_t rows = 0;
};

class MergeChooser {
 public:
  virtual ~MergeChooser() = default;
  virtual MergePlan plan(const MergeView& view) = 0;
  // Whether the rows of `built`, of which there are some, run merged in this step.
  virtual bool merged(const StepMix& mix, AdapterId built) = 0;
  // What was run: `merged` is kBaseModel when nobody was.
  virtual void observe(const StepMix&, AdapterId merged, const StepTimes&) { (void)merged; }
  virtual void built(const MergeResult&) {}
  virtual const char* name() const = 0;
};

// dLoRA's dynamic batching (Wu et al., OSDI'24) as its published artifact does it: adaptive thresholds and credits,
// with its constants. Departures, each a defect there: adapters are told apart by id, never by slot; only displaced
// requests receive credit; switching waits for the background build instead of stopping the engine.
std::unique_ptr<MergeChooser> make_dlora_chooser();

// Minimises measured step time. It learns what a step costs (cost_model.h), builds when the time merging would have
// saved so far plus what the known backlog promises exceeds the cost of building, and then takes for each kind of step
// the mode that measures faster.
std::unique_ptr<MergeChooser> make_cost_chooser();

// Which chooser a server has. kNever: no gate at all, which costs nothing.
enum class MergeMode : uint8_t { kNever, kDlora, kCost };
Result<MergeMode> parse_merge_mode(std::string_view text);
const char* to_string(MergeMode mode);                             // "never", "dlora", "cost"
std::unique_ptr<MergeChooser> make_merge_chooser(MergeMode mode);  // null for kNever

}  // namespace lk
