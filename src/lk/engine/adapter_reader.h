// SPDX-License-Identifier: Apache-2.0
// AdapterReader: reads adapters from disk into host memory by jobs of the engine's workshop. An adapter that several
// want is read once, and takes one reader however slow its file is.
//
// Thread safety: every call from the engine thread; what waits for a read is called on the reader's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/engine/benches.h"
#include "lk/lora/host_tier.h"

namespace lk {

class AdapterReader {
 public:
  using Content = Result<std::shared_ptr<const Adapter>>;
  // Called once, on the reader's thread, and quick. Returns what the engine thread does when it collects, or nothing.
  using Then = std::function<Workshop::Finish(Content content)>;
  using Ticket = uint64_t;  // never 0

  // The workshop must be destroyed first: its jobs refer to this.
  explicit AdapterReader(Workshop& workshop) : workshop_(workshop) {}

  // Urgent: before all idle ones, even where an idle one for the same adapter waits already.
  Ticket read(const std::shared_ptr<HostAdapter>& host, Workshop::Priority priority, Then then);
  // True: `then` was not called and never will be. A read that nobody waits for any more does not begin; one that has
  // begun goes on.
  bool cancel(Ticket ticket);
  // Whether it is being read or going to be.
  bool reads(const HostAdapter& host) const;

 private:
  struct Waiting {
    Ticket ticket = 0;
    Then then;
  };
  struct Reading {
    std::shared_ptr<HostAdapter> host;
    Workshop::JobId job = 0;
    Workshop::Priority priority = Workshop::Priority::kIdle;
    std::vector<Waiting> waiting;
  };
  void submit(Reading& reading, Workshop::Priority priority);
  Workshop::Finish run(HostAdapter& host);  // on the reader's thread

  Workshop& workshop_;
  mutable std::mutex mutex_;  // before the workshop's
  std::map<const HostAdapter*, Reading> readings_;
  Ticket last_ticket_ = 0;
};

}  // namespace lk
