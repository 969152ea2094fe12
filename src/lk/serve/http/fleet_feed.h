// SPDX-License-Identifier: Apache-2.0
// FleetFeed: tells routers about this replica, ten times a second, as server-sent events (cluster/replica_report.h).
// One report is made for all that listen, by a thread of its own, which sleeps while nobody does.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lk/cluster/replica_report.h"
#include "lk/serve/http/exchange.h"

namespace lk {

class FleetFeed {
 public:
  // `make` is called on the feed's thread; it may wait for a step of the engine, once.
  explicit FleetFeed(std::function<ReplicaReport()> make);
  ~FleetFeed();
  // Any thread. Until the client leaves.
  void listen(std::shared_ptr<Exchange> exchange);
  // Tells all once more how things are, ends their streams and the thread.
  void stop();

 private:
  struct Listener {
    std::shared_ptr<Exchange> exchange;
    bool is_new = true;  // has had no full report
  };
  void run();
  void tell(ReplicaReport report);           // Requires: the lock
  std::vector<std::string> routers() const;  // that listen, by name; requires: the lock

  const std::function<ReplicaReport()> make_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Listener> listeners_;  // guarded by mutex_
  bool stopping_ = false;            // guarded by mutex_
  bool wants_now_ = false;           // guarded by mutex_: somebody has had nothing yet
  // The thread's only.
  std::chrono::steady_clock::time_point next_{};
  std::optional<ReplicaReport> before_;
  std::thread thread_;
};

// What the bits of this replica's answers depend on, as one word: equal words, equal answers. SHA-256 over what its
// base model makes of a fixed prompt (the log-probabilities, bit for bit) and over what else decides which tokens come
// next: tokenizer, templates, end tokens, defaults, context, how long answers may become, and how calls and thoughts
// are found in them (`formats`). `merging`: answers then depend on what runs beside them, and are like no other
// replica's.
Result<std::string> numerics_of(EngineService& service, bool merging, int64_t max_answer_bytes,
                                std::string_view formats);

}  // namespace lk
