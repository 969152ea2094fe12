// SPDX-License-Identifier: Apache-2.0
// Merger: the thread that builds merged weights, one adapter after the other, while the engine thread runs steps.
//
// Thread safety: every call from the engine thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "lk/engine/merge_layout.h"
#include "lk/lora/host_tier.h"
#include "lk/sched/executor.h"

namespace lk {

class Merger {
 public:
  struct Job {
    AdapterId adapter = kBaseModel;
    std::shared_ptr<HostAdapter> host;
    std::shared_ptr<const MergeLayout> layout;
    std::vector<PageId> pages;
  };
  struct Done {
    MergeResult result;
    std::shared_ptr<const MergedWeights> weights;  // null after a failure
  };

  Merger(std::shared_ptr<const ModelWeights> base, Backend& backend, std::byte* pool_base);

  void start(Job job);  // Requires: !has(job.adapter)
  std::vector<Done> take_finished();
  // From start() until drop(): queued, being built, or built.
  bool has(AdapterId adapter) const { return started_.contains(adapter); }
  // Returns when the thread no longer writes this adapter's pages.
  void drop(AdapterId adapter);

 private:
  void thread_main(std::stop_token stop);
  Done build(const Job& job, const std::stop_token& stop);

  std::shared_ptr<const ModelWeights> base_;
  Backend& backend_;
  std::byte* pool_base_;
  std::set<AdapterId> started_;

  std::mutex mutex_;
  std::condition_variable_any wanted_;
  std::condition_variable idle_;
  std::deque<Job> queue_;  // guarded by mutex_, like all below
  std::vector<Done> done_;
  AdapterId current_ = kBaseModel;         // being built
  std::atomic<bool> stop_current_{false};  // read without it
  std::jthread thread_;                    // last: it uses all of the above
};

}  // namespace lk
