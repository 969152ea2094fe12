// SPDX-License-Identifier: Apache-2.0
// Relay: who is asked for one answer, and when somebody else is. No clock, no socket: the router gives it what came
// over the network (http_relay.h), the simulator what came over a simulated one.
//
// Sources: the replicas that were asked. Usually one. A second one joins when the first dies, hangs or drains, and goes
// on from what the client has; while both send, whoever has the next token first is believed, and once the one that was
// asked last has given one, the others are let go.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/cluster/answer_log.h"
#include "lk/cluster/fleet_view.h"

namespace lk {

class Relay {
 public:
  using Time = FleetView::Time;
  using Why = FleetView::Why;
  using SourceId = int64_t;

  struct Source {
    SourceId id = 0;
    int replica = 0;
    std::string numerics;  // of the replica, when it was asked
    StreamId stream = 0;   // of the FleetView
    bool resumes = false;  // began in mid-answer
    bool gave = false;     // has shown something
    Time heard{};          // last, or when it was asked
  };

  // What a relay has done by others. Called from within its own methods, which none of them may call.
  class Host {
   public:
    virtual ~Host() = default;
    virtual void send(const Source& source, Why why) = 0;  // ask it, from log() on
    virtual void cancel(SourceId source) = 0;              // nobody listens to it any more
    virtual void show(std::string_view events, const Source& source) = 0;
    virtual void finish() = 0;   // the answer is whole
    virtual void give_up() = 0;  // nobody can give it, or go on with it
  };

  struct Options {
    bool streams = false;     // tokens come one by one; else one piece, asked for anew when it is lost
    bool exact_only = false;  // others of its numerics, or nobody
  };

  // All references must outlive it.
  Relay(FleetView& fleet, Host& host, const Options& options) : fleet_(fleet), host_(host), options_(options) {}

  void start(const RoutedRequest& request, Time now);
  // Something came from a source, if only a sign of life.
  void heard(SourceId source, Time now);
  void group(SourceId source, std::string_view events, const AnswerCommit& commit, Time now);
  // It has ended without a whole answer: broken off, refused, an error. `final`: any other would say the same, so at
  // most kMostTries are asked even in mid-answer.
  void lost(SourceId source, Time now, bool is_final = false);
  // The whole answer, of one that does not stream.
  void whole(SourceId source);
  // Another replica should go on with what this stream has given: at once with one that waits, beside it with one that
  // runs, until the other has caught up. Not taken, false, when it is not one that can move now.
  bool move(StreamId stream, int replica, Time now);
  void tick(Time now);  // some times a second
  void close();         // the client left

  bool over() const { return over_; }
  bool begun() const { return begun_; }  // the client has seen something
  const AnswerLog& log() const { return log_; }
  const Source* source(SourceId id) const;
  // What one source gives, if it is one; what move() goes by.
  std::optional<StreamId> stream() const {
    return sources_.size() == 1 ? std::optional(sources_.front().stream) : std::nullopt;
  }
  int64_t num_sources() const { return static_cast<int64_t>(sources_.size()); }
  int64_t num_mismatches() const { return num_mismatches_; }

 private:
  bool ask(Why why, Time now, std::optional<int> planned = {});
  void drop(SourceId id, std::optional<int64_t> output = {});
  void drop_others(SourceId id);
  void fail_over(Time now, bool is_final);
  void end(void (Host::*how)());
  Source* find(SourceId id);
  bool is_silent(const Source& source, Time now) const;

  FleetView& fleet_;
  Host& host_;
  const Options options_;
  RoutedRequest request_;
  std::vector<Source> sources_;  // in the order in which they were asked
  SourceId next_id_ = 1;
  AnswerLog log_;
  std::vector<int> tried_;         // in vain, since one that was asked later than they gave something
  SourceId last_tried_ = 0;        // the one of them that was asked last
  std::string numerics_;           // of the replica that gave the first token
  Time trouble_since_{};           // since a source was lost and nothing has come after it
  Time last_news_{}, next_try_{};  // next_try_: of what need not be at once
  double gap_ = 0;                 // seconds between groups, a moving average
  int64_t num_mismatches_ = 0;
  bool begun_ = false, over_ = false;
};

}  // namespace lk
