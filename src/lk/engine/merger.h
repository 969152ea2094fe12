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
#include "lk/sched/executor.h"

namespace lk {

class Merger {
 public:
  struct Merge {
    AdapterId adapter = kBaseModel;
    std::shared_ptr<HostAdapter> host;
    std::shared_ptr<const MergeLayout> layout;
    std::vector<PageId> pages;
  };
  struct Done {
    MergeResult result;
    std::shared_ptr<const MergedWeights> weights;  // null after a failure
  };

  // The workshop must be destroyed first: its jobs refer to this.
  Merger(Workshop& workshop, AdapterReader& reader, std::shared_ptr<const ModelWeights> base, Backend& backend,
         std::byte* pool_base);

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
  Done run_build(const Started& started, const Adapter& content, const std::stop_token& stop);

  Workshop& workshop_;
  AdapterReader& reader_;
  std::shared_ptr<const ModelWeights> base_;
  Backend& backend_;
  std::byte* pool_base_;
  std::map<AdapterId, std::shared_ptr<Started>> started_;  // a job whose entry is gone reports to nobody
  std::vector<Done> done_;
};

}  // namespace lk
