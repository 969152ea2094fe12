// SPDX-License-Identifier: Apache-2.0
// EngineService: the engine thread. It owns a TextEngine; everybody else sends it requests and small tasks through a
// queue, and it hands the events of each step to the shards, one batch per shard and step. Who may wait for it:
// AdmissionQueue.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lk/infer/text_engine.h"
#include "lk/memory/pool_audit.h"
#include "lk/serve/http/admission_queue.h"
#include "lk/serve/observe/snapshot.h"
#include "lk/serve/openai/openai.h"

namespace lk {

using Clock = std::chrono::steady_clock;

struct RequestTiming {
  Clock::time_point arrival, started, first_token, finished;  // zero when it did not happen
};

inline Micros to_micros(Clock::time_point time) {  // on the engine's clock
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

struct StreamEvent;
// Hears what becomes of requests. All its calls come on one thread: the shard it names, or the engine thread, where it
// must not block. Each sequence holds it until its last event.
class RequestSink {
 public:
  static constexpr int kEngineThread = -1;
  explicit RequestSink(int shard) : shard_(shard) {}
  virtual ~RequestSink() = default;
  int shard() const { return shard_; }
  virtual void on_event(StreamEvent& event) = 0;

 private:
  const int shard_;
};

// One choice of an answer. Its maker fills it and gives it to EngineService::submit(); from then on it is the engine
// thread's, until the last event brings it to its sink.
struct ServedSequence : TextSequence {
  std::shared_ptr<RequestSink> sink;
  int choice = 0;
  std::shared_ptr<const void> lease;  // let go of when the request is out of the engine
  bool wants_prompt = false;          // deliver the facts of the prompt before the first token
  bool queued = true;                 // was admitted (EngineService::admit()) and has not started
  RequestTiming timing{.arrival = Clock::now()};
};

// What one step did for one request.
struct StreamEvent {
  std::shared_ptr<RequestSink> sink;
  int choice = 0;
  std::optional<Completion> prompt;  // once, before the first token, when asked for: facts of the prompt only
  StreamDelta delta;
  std::unique_ptr<ServedSequence> ended;  // with the last event: its completion and timing are whole
  Clock::time_point step_end;
};

struct EngineServiceOptions {
  int64_t max_queue_requests = 1024;  // waiting, not running
  // Prompt + max_tokens of waiting requests; 0 = a quarter context for each, a whole one at least.
  int64_t max_queue_tokens = 0;
  double max_wait_seconds = 60;                                       // predicted
  int nice = 0;                                                       // of the engine thread
  Clock::duration publish_interval = std::chrono::milliseconds(100);  // of snapshots while it works
  Clock::duration audit_interval = std::chrono::seconds(1);           // of slices of the pool it checks while idle
  std::function<void(int64_t num_tokens, double seconds)> on_step;    // after each step, on the engine thread
  std::function<void(const Status& reason)>
      on_fault;  // something threw on the engine thread, which goes on; for the log
};

class EngineService {
 public:
  using Deliver = std::function<void(int shard, std::vector<StreamEvent> events)>;

  // `deliver` is called on the engine thread and must not block.
  EngineService(std::unique_ptr<TextEngine> engine, const EngineServiceOptions& options, Deliver deliver);
  ~EngineService();
  // Ends what is left with kUnavailable, delivers that, and joins the thread. From then on tasks are not taken, and of
  // what is submitted a sink of the engine thread hears kUnavailable at once, a shard's nothing.
  void stop();

  const TextModel& text() const { return *text_; }
  std::shared_ptr<const TextModel> shared_text() const { return text_; }

  // --- Any thread
  using Account = AdmissionQueue::Account;
  using Share = AdmissionQueue::Share;
  using Admission = AdmissionQueue::Admission;
  // Of a tenant; made when the name is new, its weight holds from now on.
  Account account(const std::string& name, double weight);
  static Share share_of(const TextSequence& sequence) {
    return {.requests = 1, .tokens = sequence.reserved_tokens, .prompt_tokens = sequence.completion.prompt_tokens};
  }
  // Asks for room in the queue. Admitted requests must be submitted or given back with abandon().
  Admission admit(const Account& account, const Share& share, std::optional<double> patience_seconds = {}) {
    return queue_.admit(account, share, start_rate_.load(std::memory_order_relaxed), patience_seconds);
  }
  // For what was admitted elsewhere: takes the places, whatever the bounds say.
  Admission admit_anyway(const Account& account, const Share& share) {
    queue_.take(account, share);
    return {};
  }
  void abandon(const Account& account, const Share& share) { queue_.leave(account.id, share); }
  // Whether anything more of it would be admitted.
  Admission look(const Account& account) const {
    return queue_.look(account, start_rate_.load(std::memory_order_relaxed));
  }
  double predicted_wait_seconds() const {  // behind everything that waits
    return queue_.longest_wait_seconds(start_rate_.load(std::memory_order_relaxed));
  }
  int64_t num_queued() const { return queue_.waiting().requests; }

  // Requires: prepared, its adapter set. Gives it its id.
  RequestId submit(std::unique_ptr<ServedSequence> sequence);
  void cancel(RequestId id);  // the last event says kCancelled, unless it was already on its way
  // Runs a task on the engine thread between two steps; false once stopped: the task was not taken.
  bool call(std::function<void(TextEngine&)> task);
  // Thread safe, on the caller's thread.
  Result<Engine::PreparedAdapter> prepare_adapter(std::shared_ptr<HostAdapter> adapter) const {
    return engine_->engine().prepare_adapter(std::move(adapter));
  }
  // Registers an adapter version; blocks for at most a step. kBaseModel once stopped, when nothing runs any more.
  AdapterId add_adapter(Engine::PreparedAdapter adapter);
  // TextEngine's: whether --exact (or the lack of --merging) keeps an adapter of this name from being merged; and lets
  // one be merged, from the requests on that are submitted after this call.
  bool is_exact(std::string_view name) const { return engine_->is_exact(name); }
  void allow_merging(AdapterId id);
  // Frees an adapter that no request uses; `done` (may be empty) gets the bytes of pages that became free, on the
  // engine thread; once stopped 0, on the caller's.
  void remove_adapter(AdapterId id, std::function<void(int64_t page_bytes)> done);
  // Ends every request in the engine with this error.
  void abort_all(Status error);

  struct ResidentState {
    AdapterState state = AdapterState::kAbsent;
    int64_t bytes = 0, running = 0, waiting = 0;
  };
  struct Snapshot {
    ServerSnapshot server;  // the parts the engine knows
    std::map<AdapterId, ResidentState> adapters;
    std::map<std::string, TenantService> tenants;
  };
  Snapshot snapshot() const;  // at most some 100 ms old
  // As things are now: what ended before the call is seen as ended. Waits for at most a step.
  Snapshot fresh_snapshot();
  // Seconds since the engine thread last showed life, 0 when it has nothing to do.
  double stalled_seconds() const;

 private:
  // For the engine thread, in order: a request that arrived, or something to do.
  struct Command {
    std::unique_ptr<ServedSequence> arrived;
    std::function<void()> task;
  };

  void main();
  void end_everything();
  bool post(Command& command);  // false once stopped: it was not taken
  bool post(std::function<void()> task);
  void prefetch_arriving();
  void run_commands();
  void step();
  template <class F>
  bool walled(std::string_view what, F f);  // false when it threw
  void start(std::unique_ptr<ServedSequence> sequence);
  void end(std::unique_ptr<ServedSequence> sequence, Status error);
  void deliver(TextUpdate update);
  void leave_queue(ServedSequence& sequence);
  void fail_all(const Status& error);
  void flush_events();
  void drop_removed();
  void publish(bool force);
  void wait_idle(std::unique_lock<std::mutex>& lock, const std::function<bool()>& ready);  // Requires: lock of mutex_

  std::unique_ptr<TextEngine> engine_;
  std::shared_ptr<const TextModel> text_;
  const EngineServiceOptions options_;
  const Deliver deliver_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> commands_;           // guarded by mutex_
  std::vector<AdapterId> arriving_;        // guarded by mutex_: adapters that commands_ will ask for
  std::atomic<bool> any_arriving_{false};  // arriving_ is not empty; written under mutex_
  bool stopping_ = false;                  // guarded by mutex_
  bool stopped_ = false;                   // guarded by mutex_: no command will run any more
  bool woken_ = false;                     // guarded by mutex_: a load finished

  std::atomic<RequestId> next_id_{1};
  AdmissionQueue queue_;
  std::atomic<StartRate> start_rate_{};  // of the scheduler's forecast
  std::atomic<int64_t> busy_since_{0};   // steady clock, ns; 0 = idle

  // Engine thread only.
  std::vector<std::vector<StreamEvent>> batches_;  // by shard
  std::vector<std::pair<AdapterId, std::function<void(int64_t)>>> removed_;
  Clock::time_point step_end_, published_;
  int64_t prompt_tokens_ = 0, generation_tokens_ = 0;
  double step_seconds_ = 0, busy_seconds_ = 0;
  PoolAudit audit_;                                              // while there is nothing else to do
  std::deque<std::pair<Clock::time_point, int64_t>> generated_;  // recent totals, for the rate

  mutable std::mutex accounts_mutex_;
  std::map<std::string, Account> accounts_;  // guarded by accounts_mutex_

  mutable std::mutex snapshot_mutex_;
  Snapshot snapshot_;
  std::thread thread_;
};

}  // namespace lk
