// SPDX-License-Identifier: Apache-2.0
// Loader: the threads that bring adapters up the tiers: readers from disk into host memory, one more from there into
// pages, so that a slow read holds up no copy. All of it beside the engine thread's steps.
//
// Thread safety: every call from the engine thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "lk/engine/adapter_layout.h"
#include "lk/lora/host_tier.h"

namespace lk {

class Loader {
 public:
  struct Job {
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

  Loader(std::byte* pool_base, Backend& backend, int num_readers);

  // Called on the copying thread after each load. Set before the first load.
  void set_listener(std::function<void()> listener) { listener_ = std::move(listener); }
  // Fills the job's pages.
  void start(Job job);
  std::vector<Done> take_finished(bool wait);
  // Reads an adapter from disk into host memory, after all that start() waits for. Nothing when it is there, or when
  // what was staged and not started yet would take more than half of the host tier.
  void stage(const std::shared_ptr<HostAdapter>& adapter);
  // What bringing an adapter into pages costs now, in that of copying it from host memory: more when it has to be read
  // first.
  double relative_cost(const HostAdapter& adapter) const;

 private:
  struct Copy {
    Job job;
    Result<std::shared_ptr<const Adapter>> content;
  };
  void read_main(std::stop_token stop);
  void copy_main(std::stop_token stop);

  std::byte* const pool_base_;
  Backend& backend_;
  std::atomic<double> copy_seconds_per_byte_{0};  // a moving average
  std::function<void()> listener_;
  // Engine thread only: staged and not started, dropped ones among them.
  std::vector<std::shared_ptr<HostAdapter>> staged_;

  std::mutex mutex_;
  std::condition_variable_any read_wanted_, copy_wanted_;
  std::condition_variable finished_;
  std::deque<Job> reads_;                            // guarded by mutex_, like all below
  std::deque<std::shared_ptr<HostAdapter>> stages_;  // read when reads_ is empty
  std::deque<Copy> copies_;
  std::vector<Done> done_;
  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace lk
