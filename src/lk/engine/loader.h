// SPDX-License-Identifier: Apache-2.0
// Loader: brings adapters up the tiers by jobs of the engine's workshop: reads from disk into host memory, and copies
// from there into pages. All of it beside the engine thread's steps.
//
// Thread safety: every call from the engine thread.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/engine/adapter_filler.h"
#include "lk/engine/benches.h"
#include "lk/lora/host_tier.h"
#include "lk/memory/stage_budget.h"

namespace lk {

class Loader {
 public:
  struct Load {
    AdapterId adapter = kBaseModel;
    std::shared_ptr<HostAdapter> host;
    std::shared_ptr<const AdapterLayout> layout;
    std::vector<PageId> pages;
  };
  struct Done {
    AdapterId adapter = kBaseModel;
    Status status;                                    // of reading it
    std::shared_ptr<const ResidentAdapter> resident;  // null after a failure
  };

  // The workshop must be destroyed first: its jobs refer to this.
  Loader(Workshop& workshop, std::byte* pool_base, Backend& backend)
      : workshop_(workshop), pool_base_(pool_base), backend_(backend) {}

  // Fills the load's pages.
  void start(Load load);
  // Loads that ended. With `wait`, blocks until there is one.
  std::vector<Done> take_finished(bool wait);
  // Reads an adapter from disk into host memory, after all that start() waits for. Nothing when it is there, or when
  // what was staged and not started yet would take more than half of the host tier.
  void stage(AdapterId adapter, std::shared_ptr<HostAdapter> host);
  // The adapter is not known any more: what was staged of it is let go.
  void forget(AdapterId adapter);
  // What bringing an adapter into pages costs now, in that of copying it from host memory: more when it has to be read
  // first.
  double relative_cost(const HostAdapter& adapter) const;

 private:
  struct Staged {
    std::shared_ptr<HostAdapter> host;
    Workshop::JobId job = 0;
    bool read = false;
  };
  void copy(const Load& load, Result<std::shared_ptr<const Adapter>> content);

  Workshop& workshop_;
  std::byte* const pool_base_;
  Backend& backend_;
  double copy_seconds_per_byte_ = 0;  // a moving average
  StageBudget budget_;
  std::map<AdapterId, Staged> staged_;  // and not started, dropped ones among them
  std::vector<Done> done_;
};

}  // namespace lk
