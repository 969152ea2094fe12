// SPDX-License-Identifier: Apache-2.0
#include "lk/load/runner.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace lk::load {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kTick = std::chrono::milliseconds(100);
// An open loop hands its requests to the io thread in lots, each with its time: a wake-up of this thread for every
// request would take the processor from a server on the same machine.
constexpr double kHandOverBefore = 0.01, kHandOverSpan = 0.05;  // seconds

// The calling thread sends; the client's io threads fill the records. A record belongs to the io thread from send() to
// on_done.
class Run {
 public:
  Run(HttpClient& client, const RunOptions& options)
      : client_(client),
        options_(options),
        arrivals_(options.arrival, options.open_loop ? options.rate : 1, options.cv, options.seed),
        start_(Clock::now()) {}

  RunResult go() {
    for (int64_t index = 0; (options_.num_requests == 0 || index < options_.num_requests) && !stopped_; ++index) {
      const PlannedRequest planned = options_.plan(index);  // before its time comes
      const double scheduled = options_.open_loop ? arrivals_.next() : 0;
      if (past_end(scheduled)) break;
      const bool ahead = options_.open_loop && options_.max_in_flight <= 0;
      if (options_.open_loop && !(ahead ? wait_for_lot(scheduled) : wait_until(scheduled))) break;
      if (!wait_for_room()) break;
      if (!options_.open_loop && past_end(now())) break;
      send(planned, scheduled);
    }
    drain();
    RunResult result{.facts = {.duration_s = last_end_s_ - first_send_s_,
                               .peak_concurrency = peak_,
                               .open_loop = options_.open_loop},
                     .was_interrupted = stopped_};
    for (Slot& slot : slots_)
      if (slot.started) result.records.push_back(std::move(slot.record));
    return result;
  }

 private:
  struct Slot {
    RequestRecord record;
    std::unique_ptr<AnswerReader> reader;
    int64_t id = 0;
    bool started = false, done = false;  // guarded by mutex_
  };

  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  bool past_end(double time) const { return options_.duration_s > 0 && time >= options_.duration_s; }

  // False when interrupted.
  bool check() {
    if (!stopped_ && options_.interrupted && options_.interrupted()) stopped_ = true;
    const double time = now();
    if (options_.on_progress && time >= next_progress_s_) {
      next_progress_s_ = time + 0.5;
      RunProgress progress{.elapsed_s = time};
      {
        const std::lock_guard lock(mutex_);
        progress.sent = started_;
        progress.in_flight = in_flight_;
        progress.failed = failed_;
      }
      progress.finished = progress.sent - progress.in_flight;
      options_.on_progress(progress);
    }
    return !stopped_;
  }

  bool wait_until(double time) {
    const auto deadline = start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(time));
    while (check()) {
      if (Clock::now() >= deadline) return true;
      std::this_thread::sleep_until(std::min<Clock::time_point>(deadline, Clock::now() + kTick));
    }
    return false;
  }

  bool wait_for_lot(double scheduled) {
    if (scheduled <= lot_end_s_) return true;
    if (!wait_until(scheduled - kHandOverBefore)) return false;
    lot_end_s_ = now() + kHandOverSpan;
    return true;
  }

  bool wait_for_room() {
    if (options_.max_in_flight <= 0) return check();
    while (check()) {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kTick, [&] { return outstanding_ < options_.max_in_flight; })) return true;
    }
    return false;
  }

  void send(const PlannedRequest& planned, double scheduled) {
    Slot& slot = slots_.emplace_back();
    slot.record.adapter = planned.adapter;
    slot.record.wanted_tokens = planned.max_tokens;
    slot.reader = std::make_unique<AnswerReader>(slot.record, options_.stream);
    {
      const std::lock_guard lock(mutex_);
      ++outstanding_;
    }
    slot.record.scheduled_s = scheduled;
    ClientRequest request{
        .url = planned.url, .headers = options_.headers, .body = planned.body, .timeout = options_.timeout};
    if (options_.open_loop)
      request.not_before =
          start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(scheduled));
    slot.id = client_.send(std::move(request),
                           {.on_start = [this, &slot] { on_start(slot); },
                            .on_head = [&slot](int status, const HttpHeaders&) { slot.reader->on_head(status); },
                            .on_data = [this, &slot](std::string_view bytes) { slot.reader->on_data(bytes, now()); },
                            .on_done = [this, &slot](Status status) { on_done(slot, status); }});
  }

  void on_start(Slot& slot) {
    RequestRecord& record = slot.record;
    record.sent_s = now();
    if (!options_.open_loop) record.scheduled_s = record.sent_s;
    const std::lock_guard lock(mutex_);
    slot.started = true;
    if (started_++ == 0) first_send_s_ = record.sent_s;
    peak_ = std::max(peak_, ++in_flight_);
  }

  void on_done(Slot& slot, const Status& status) {
    if (!slot.started && status.code() != StatusCode::kCancelled) on_start(slot);  // it could not even be sent
    const double time = now();
    slot.reader->on_done(status, time);
    slot.reader.reset();
    const std::lock_guard lock(mutex_);
    slot.done = true;
    --outstanding_;
    changed_.notify_one();
    if (!slot.started) return;
    --in_flight_;
    failed_ += slot.record.outcome == Outcome::kOk ? 0 : 1;
    last_end_s_ = std::max(last_end_s_, time);
  }

  void drain() {
    bool cancelled = false;
    while (true) {
      check();
      if (stopped_ && !cancelled) {
        cancelled = true;
        std::vector<int64_t> ids;
        {
          const std::lock_guard lock(mutex_);
          for (const Slot& slot : slots_)
            if (!slot.done) ids.push_back(slot.id);
        }
        for (const int64_t id : ids) client_.cancel(id);
      }
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kTick, [&] { return outstanding_ == 0; })) return;
    }
  }

  HttpClient& client_;
  const RunOptions& options_;
  ArrivalProcess arrivals_;
  const Clock::time_point start_;
  std::deque<Slot> slots_;  // stable addresses
  bool stopped_ = false;
  double next_progress_s_ = 0, lot_end_s_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_. Outstanding: handed to the client and not done, its time may be still to come; in flight: of
  // these the started.
  int64_t outstanding_ = 0, in_flight_ = 0, started_ = 0, peak_ = 0, failed_ = 0;
  double first_send_s_ = 0, last_end_s_ = 0;
};

}  // namespace

RunResult run_load(HttpClient& client, const RunOptions& options) { return Run(client, options).go(); }

}  // namespace lk::load
