// SPDX-License-Identifier: Apache-2.0
// Workshop: threads for slow work (reading files, copying, merging) beside an owner that must never wait for it, such
// as the engine thread. A job runs on one of the threads of its bench: the urgent ones first, else in the order they
// came. What it returns is run by the owner, on the owner's own thread, when it collects.
//
// Thread safety: submit() and cancel() from any thread, jobs included; collect() from the owner's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

namespace lk {

class Workshop {
 public:
  struct Bench {
    std::string name;  // of its threads, at most 15 characters
    int num_threads = 1;
  };
  // kIdle: when nothing urgent waits; and where a bench has several threads, one is never taken by idle jobs.
  enum class Priority : uint8_t { kUrgent, kIdle };
  using Finish = std::function<void()>;  // may be empty
  // Asked to stop, a job should return soon; it returns a Finish all the same.
  using Work = std::function<Finish(const std::stop_token&)>;
  using JobId = uint64_t;

  explicit Workshop(const std::vector<Bench>& benches);
  // Asks running jobs to stop and waits for them; what has not begun or was not collected is forgotten.
  ~Workshop();
  Workshop(const Workshop&) = delete;
  Workshop& operator=(const Workshop&) = delete;

  // `bench` is an index into the constructor's list.
  JobId submit(size_t bench, Work work, Priority priority = Priority::kUrgent);
  // True: it had not begun and never will. False: it is asked to stop if it still runs, and its Finish comes or came.
  bool cancel(JobId job);
  // Returns when the job does not run (any more). For work that looks at its stop token often.
  void wait_until_idle(JobId job);
  // Runs what ended jobs returned, in the order they ended. With `wait`, blocks until there is something to run.
  void collect(bool wait = false);
  // Called on the job's thread whenever there is something new to collect. Set before the first job.
  void set_listener(std::function<void()> listener) { listener_ = std::move(listener); }

 private:
  struct Job {
    JobId id = 0;
    Work work;
  };
  struct Queue {
    std::deque<Job> urgent, idle;
    int idle_threads = 1;  // more may be taken by idle jobs
    std::condition_variable wanted;
  };
  static std::deque<Job>* next_jobs(Queue& queue);  // whose first one may begin now; null: nobody's
  void thread_main(Queue& queue, const Bench& bench);

  std::function<void()> listener_;
  std::mutex mutex_;
  std::deque<Queue> queues_;  // by bench; guarded by mutex_, like all below
  std::condition_variable ended_changed_;
  std::map<JobId, std::stop_source> running_;
  std::vector<Finish> ended_;
  JobId last_id_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lk
