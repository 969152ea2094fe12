// SPDX-License-Identifier: Apache-2.0
// LoadQueue: threads that load adapters, one load per name at a time, so that replacements happen in the order they
// were asked for. Tenants take turns: one that asks for a thousand adapters holds up the next one by a load, not by a
// thousand.
//
// Thread safety: any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "lk/base/status.h"

namespace lk {

class LoadQueue {
 public:
  explicit LoadQueue(int num_threads);
  ~LoadQueue();  // stop()

  struct Job {
    std::string name;
    std::function<void()> load;  // nobody else loads this name meanwhile
    // Afterwards: OK when load() returned, kInternal with what it threw, kUnavailable when the queue was stopped
    // before.
    std::function<void(const Status& ended)> done;
  };
  void push(const std::string& tenant, Job job);
  bool is_busy(const std::string& name) const;  // being loaded now
  int64_t size() const;                         // queued and being loaded
  // Waits for what is being loaded; the rest has not run.
  void stop();

 private:
  struct Line {
    std::deque<Job> jobs;
    uint64_t turn = 0;  // the lowest comes next
  };
  void main();
  bool take_locked(Job& job);

  mutable std::mutex mutex_;
  std::condition_variable wanted_;
  std::map<std::string, Line> lines_;  // by tenant; none is empty
  uint64_t turn_ = 0;                  // of the last job taken: who comes now is not ahead of those who waited
  std::set<std::string> busy_;
  int64_t size_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lk
