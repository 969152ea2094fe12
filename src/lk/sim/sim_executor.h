// SPDX-License-Identifier: Apache-2.0
// SimExecutor: an Executor without a model. A step takes the time the cost model says, on a virtual clock; copies into
// pages run on one channel beside the steps, after two readers brought from disk what is not in host memory (the copy
// then follows at once, as if the channel were free: reading takes far longer); merged weights are built one adapter at
// a time beside the steps, with a third of the machine, or all of it while no step runs; the sampled token is
// kStopToken when the request has its true length, which the scheduler cannot see (its own limit is
// Request::max_tokens).
//
// Thread safety: none.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <vector>

#include "lk/memory/stage_budget.h"
#include "lk/sched/executor.h"
#include "lk/sim/cost_model.h"
#include "lk/sim/faults.h"
#include "lk/sim/step_shape.h"

namespace lk::sim {

inline constexpr int32_t kStopToken = 0, kToken = 1;

struct SimAdapter {
  int64_t rank = 0;
  int64_t pages = 0;
  double bytes = 0;
};
// Adapters 0, 1, ... with the ranks taken in turn. A share of them, evenly spread, has whole matrices besides its rank
// rows (replaced ones, an lm_head): so many bytes each.
std::vector<SimAdapter> make_adapters(const CostModel& model, int64_t count, std::span<const int64_t> ranks,
                                      double matrix_share = 0, double matrix_bytes = 0);

struct LoadRecord {
  AdapterId adapter = 0;
  Micros start = 0, end = 0;
  bool failed = false;
};

class SimExecutor : public Executor {
 public:
  // host_bytes: of the host tier, least recently used out first; 0 = it holds every adapter. Both references must
  // outlive this.
  SimExecutor(const CostModel& model, std::vector<SimAdapter> adapters, double host_bytes, Faults& faults);

  // Output length of request `id`, which must be the number of calls so far.
  void expect(RequestId id, int32_t output_length);
  // Requires: not in the past.
  void advance_to(Micros time);
  // Called within each step, at its beginning, with its end: what happens meanwhile may advance the clock so far.
  void set_interlude(std::function<void(Micros end)> interlude) { interlude_ = std::move(interlude); }
  // What bringing it into pages would cost now, relative to a copy from host memory.
  double reload_cost(AdapterId adapter) const;
  // When the load under way ends that ends first.
  std::optional<Micros> next_load_end() const;
  const std::vector<LoadRecord>& loads() const { return loads_; }
  int64_t num_cold_loads() const { return num_cold_loads_; }  // that had to wait for the disk
  int64_t num_disk_reads() const { return num_disk_reads_; }
  double busy_us() const { return busy_us_; }                                              // in steps, exact
  std::vector<AdapterId> on_host() const { return {host_lru_.begin(), host_lru_.end()}; }  // of a bounded host tier
  const CostModel& model() const { return model_; }

  Micros now() const override { return now_; }
  int64_t footprint(AdapterId adapter) const override;
  void start_load(AdapterId adapter, std::span<const PageId> pages) override;
  void evicted(AdapterId adapter) override;
  void stage(AdapterId adapter) override;
  void unstage(AdapterId adapter) override { staged_.done(adapter); }
  std::vector<LoadResult> take_finished_loads(bool wait) override;
  std::span<ItemResult> execute(const StepPlan& plan) override;
  StepTimes last_step_times() const override { return times_; }
  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override;
  void start_merge(AdapterId adapter, std::span<const PageId> pages) override;
  std::vector<MergeResult> take_finished_merges() override;
  void drop_merge(AdapterId adapter) override;

 private:
  struct Merge {
    double left_us = 0;  // of work, alone on the machine; 0 = built
    Micros begun = 0;
    bool reported = false;
    bool fails = false;
  };
  Merge* building();  // null when nothing is
  bool on_host(AdapterId adapter) const {
    return host_bytes_ <= 0 || host_place_[static_cast<size_t>(adapter)] != host_lru_.end();
  }
  void touch_host(AdapterId adapter);
  Micros read(AdapterId adapter, double factor);  // from disk; when it is there

  const CostModel& model_;
  const std::vector<SimAdapter> adapters_;
  Faults& faults_;
  std::vector<int32_t> output_length_;  // by request
  Micros now_ = 0;
  double fraction_us_ = 0;  // of a microsecond, carried to the next step
  double busy_us_ = 0;

  std::vector<bool> resident_;  // by adapter
  Micros channel_free_ = 0;
  std::deque<size_t> loading_;  // into loads_, in order of their end
  std::vector<LoadRecord> loads_;
  int64_t num_cold_loads_ = 0, num_disk_reads_ = 0;

  double host_bytes_ = 0, host_used_ = 0;
  std::list<AdapterId> host_lru_;                           // oldest first
  std::vector<std::list<AdapterId>::iterator> host_place_;  // host_lru_.end() = on disk only
  std::vector<Micros> host_ready_;                          // when the read ends that brings it there
  std::array<Micros, 2> reader_free_{};
  StageBudget staged_;

  std::map<AdapterId, Merge> merges_;
  StepTimes times_;
  std::vector<ItemResult> results_;  // of the latest step
  ShapeBuilder shape_;
  std::function<void(Micros)> interlude_;
};

}  // namespace lk::sim
