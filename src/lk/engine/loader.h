// SPDX-License-Identifier: Apache-2.0
// Loader: brings adapters up the tiers: has them read from disk into host memory, and copies from there into pages by
// jobs of the engine's workshop. All of it beside the engine thread's steps.
//
// Thread safety: every call from the engine thread.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/engine/adapter_filler.h"
#include "lk/engine/adapter_reader.h"
#include "lk/engine/rank_memory.h"
#include "lk/memory/stage_budget.h"
#include "lk/sched/load_breaker.h"

namespace lk {

class Loader {
 public:
  struct Load {
    AdapterId adapter = kBaseModel;
    std::shared_ptr<HostAdapter> host;
    std::vector<std::shared_ptr<const AdapterLayout>> layouts;  // by rank
    std::vector<PageId> pages;                                  // a rank uses as many of the first as its layout needs
  };
  struct Done {
    AdapterId adapter = kBaseModel;
    Status status;                                                  // of reading it
    std::vector<std::shared_ptr<const ResidentAdapter>> residents;  // by rank; empty after a failure
  };

  // The workshop must be destroyed first: its jobs refer to this.
  Loader(Workshop& workshop, AdapterReader& reader, std::vector<RankMemory> ranks)
      : workshop_(workshop), reader_(reader), ranks_(std::move(ranks)) {}

  // Fills the load's pages on all ranks.
  void start(Load load);
  // Loads that ended. With `wait`, blocks until there is one.
  std::vector<Done> take_finished(bool wait);
  // Loads that write no page yet end now, with kUnavailable.
  void abandon();
  // Reads an adapter from disk into host memory, after all that start() waits for. Nothing when it is there, when what
  // was staged and not started yet would take more than half of the host tier, or when such a read failed just now.
  void stage(AdapterId adapter, const std::shared_ptr<HostAdapter>& host);
  // Nobody waits for it any more.
  void unstage(AdapterId adapter);
  // The adapter is not known any more: what was staged of it is let go.
  void forget(AdapterId adapter);
  // What bringing an adapter into pages costs now, in that of copying it from host memory: more when it has to be read
  // first.
  double relative_cost(const HostAdapter& adapter) const;

 private:
  struct Loading {
    Load load;
    AdapterReader::Ticket read = 0;  // 0: it was in host memory
    Workshop::JobId copy = 0;        // 0: it waits for the read
  };
  struct Staged {
    std::shared_ptr<HostAdapter> host;
    AdapterReader::Ticket read = 0;
  };
  std::vector<std::shared_ptr<const ResidentAdapter>> fill(const Load& load,
                                                           const std::shared_ptr<const Adapter>& content) const;
  void copy(const std::shared_ptr<Loading>& loading, std::shared_ptr<const Adapter> content);
  void end(Done done);

  Workshop& workshop_;
  AdapterReader& reader_;
  const std::vector<RankMemory> ranks_;
  double copy_seconds_per_byte_ = 0;  // a moving average
  std::map<AdapterId, std::shared_ptr<Loading>> loading_;
  StageBudget budget_;
  std::map<AdapterId, std::shared_ptr<Staged>> staged_;  // and not started, ones that the tier dropped among them
  LoadBreaker failed_stages_;
  std::vector<Done> done_;
};

}  // namespace lk
