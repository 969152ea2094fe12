// SPDX-License-Identifier: Apache-2.0
// Merger: builds merged weights by jobs of the engine's workshop, one adapter after the other, while the engine thread
// runs steps. A merge first has its adapter read (behind all loads), then is built.
//
// Thread safety: every call from the engine thread.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/engine/adapter_reader.h"
#include "lk/engine/merge_layout.h"
#include "lk/engine/rank_memory.h"
#include "lk/sched/executor.h"

namespace lk {

class Merger {
 public:
  struct Merge {
    AdapterId adapter = kBaseModel;
    std::shared_ptr<HostAdapter> host;
    std::vector<std::shared_ptr<const MergeLayout>> layouts;  // by rank
    double build_cost_rows = 0;                               // of the whole: MergeLayout::build_cost_rows()
    std::vector<PageId> pages;
  };
  struct Done {
    MergeResult result;
    std::vector<std::shared_ptr<const MergedWeights>> weights;  // by rank; empty after a failure
  };

  // The workshop must be destroyed first: its jobs refer to this.
  Merger(Workshop& workshop, AdapterReader& reader, std::vector<RankMemory> ranks)
      : workshop_(workshop), reader_(reader), ranks_(std::move(ranks)) {}

  void start(Merge merge);  // Requires: !has(merge.adapter)
  std::vector<Done> take_finished();
  // From start() until drop(): being read, queued, being built, or built.
  bool has(AdapterId adapter) const { return started_.contains(adapter); }
  // On return nobody writes this adapter's pages. Waits for no file: at most for the panel of weights being computed.
  void drop(AdapterId adapter);

 private:
  struct Started {
    Merge merge;
    std::chrono::steady_clock::time_point begin;
    AdapterReader::Ticket read = 0;
    Workshop::JobId job = 0;  // 0: it waits for the read
  };
  void build(const std::shared_ptr<Started>& started, AdapterReader::Content content);
  Done run_build(const Started& started, const std::shared_ptr<const Adapter>& content, const std::stop_token& stop);
  Result<std::vector<std::shared_ptr<const MergedWeights>>> build_ranks(const Merge& merge,
                                                                        const std::shared_ptr<const Adapter>& content,
                                                                        const std::function<bool()>& stop,
                                                                        RoundingLoss* loss) const;

  Workshop& workshop_;
  AdapterReader& reader_;
  const std::vector<RankMemory> ranks_;
  std::map<AdapterId, std::shared_ptr<Started>> started_;  // a job whose entry is gone reports to nobody
  std::vector<Done> done_;
};

}  // namespace lk
