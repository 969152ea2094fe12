// SPDX-License-Identifier: Apache-2.0
// ReplicaLoad: what a router believes of one replica now: its last report, and on top of it what the router itself has
// sent there and heard back since. The second half is what makes an old report harmless: of its own requests a router
// knows every token.
//
// Pure: no clock, no sockets. The simulator runs the same code.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "lk/cluster/replica_report.h"

namespace lk {

using StreamId = int64_t;

// A request as far as its placement depends on it.
struct RoutedRequest {
  std::string adapter;          // name@version, or a name; "" = the base model
  double prompt_tokens = 0;     // an estimate
  double predicted_output = 0;  // tokens, of all choices
  double adapter_bytes = 0;     // 0: nobody has it in memory
  double cached_tokens = 0;     // of the prompt, that the replica may still have; differs between replicas
  bool can_move = false;        // its tokens come one by one: another replica may go on with it
  int moves = 0;                // it was moved by plan so far
};

class ReplicaLoad {
 public:
  // Of another start of the replica (report.id): everything that was sent before is forgotten.
  void report(std::shared_ptr<const ReplicaReport> report);
  const ReplicaReport& last() const { return *report_; }
  bool reported() const { return reported_; }

  using Time = std::chrono::steady_clock::time_point;
  void sent(StreamId id, const RoutedRequest& request, Time now);
  void token(StreamId id, int64_t count);  // of its output arrived
  void ended(StreamId id);
  std::string adapter_of(StreamId id) const;  // "" when it is not one of the own ones (any more)
  int64_t own_requests() const { return static_cast<int64_t>(own_.size()); }
  const std::map<std::string, int64_t>& own_adapters() const { return own_adapters_; }  // requests in flight
  struct Owned {
    StreamId id = 0;
    const RoutedRequest* request = nullptr;
    double made = 0, left = 0;  // tokens; left: predicted
    Time since{};
  };
  std::vector<Owned> own() const;

  // --- The account. Rates are measured (replicas report totals); before anything was measured they are guesses.
  double requests() const;              // running or waiting, everybody's
  double queued_prompt_tokens() const;  // of own requests without a token yet
  double step_seconds() const { return step_seconds_; }
  double bytes_per_second() const;                  // of its memory, as steps read weights
  double row_seconds(double context_tokens) const;  // what reading its keys and values costs a step, one sequence
  double tokens_per_second() const { return tokens_per_second_; }  // of prompts
  double free_pages() const;                                       // once all that runs has come to its predicted end
  // Until one more request has a place among those that run at once, behind all that are there.
  double place_seconds() const;
  bool holds(const std::string& adapter) const;
  bool has_copy(const std::string& adapter) const;  // in its memory
  bool runs(const std::string& adapter) const;  // in flight there, so that one more row of it needs no other segment
  double adapter_bytes(const std::string& adapter) const;  // 0: not known there
  double work_seconds() const;  // until all of its own requests have ended, by their predictions

 private:
  struct Own {
    RoutedRequest request;
    Time since{};
    double made = 0;    // tokens
    bool newer = true;  // than the last report
  };
  double pages_of(double tokens) const;

  std::shared_ptr<const ReplicaReport> report_ = std::make_shared<ReplicaReport>();
  bool reported_ = false;
  std::unordered_map<StreamId, Own> own_;
  std::map<std::string, int64_t> own_adapters_;  // requests in flight
  double newer_requests_ = 0;
  double idle_adapter_pages_ = 0;  // of adapters that nobody used at the last report: they make room when it is needed
  double step_seconds_ = 0.02, tokens_per_second_ = 2000;
  double decode_seconds_ = 0.02;  // of steps without long prompts
};

}  // namespace lk
