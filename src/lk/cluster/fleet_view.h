// SPDX-License-Identifier: Apache-2.0
// FleetView: what a router knows of all replicas, which of them live, and who gets the next request. Thread safe; the
// time is given by the caller, so that a simulator can run it.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "lk/cluster/fleet_picture.h"
#include "lk/cluster/picker.h"
#include "lk/cluster/placement.h"

namespace lk {

struct FleetOptions {
  std::vector<std::string> urls;  // of the replicas, without a '/' at the end; more may come with set_urls()
  std::string policy = "cost";
  uint64_t seed = 0;
  // A replica that has said nothing for so long gets nothing more, and what it has is asked for elsewhere. Reports come
  // ten times a second.
  std::chrono::milliseconds silence{1000};
};

class FleetView {
 public:
  using Time = std::chrono::steady_clock::time_point;

  static Result<std::unique_ptr<FleetView>> create(const FleetOptions& options);

  // --- Which replicas there are. Each has a number that no other one ever gets. Of one that has left, everything below
  // is what it is of one that was never heard of, with no URL.
  std::vector<int> numbers() const;
  int listed() const;  // as many as there should be
  std::string url(int replica) const;
  // The replicas there are from now on; returns the numbers of new ones, which nobody listens to yet. One that is not
  // among them any more stays until drop().
  std::vector<int> set_urls(const std::vector<std::string>& urls);
  // To be asked of one whose stream of reports broke: true when it should not be there any more and has no request of
  // this router. It has left then.
  bool drop(int replica);

  // --- What is heard of a replica.
  // kFailedPrecondition: the same process under another name; nothing changes.
  Status report(int replica, ReplicaReport report, Time now);
  // Its stream of reports broke, or was ended by it.
  void lost(int replica, const Status& reason, bool was_ended = false);
  void refused(int replica, Time until);  // it is full: nothing for it until then

  enum class Life : uint8_t {
    kUnknown,   // never heard of
    kGone,      // its stream of reports broke
    kSilent,    // connected, and says nothing: hung, or cut off
    kStarting,  // alive, not ready
    kDraining,  // takes nothing new; what it has should move. It may have ended its reports
    kReady,
  };
  Life life(int replica, Time now) const;
  static const char* to_string(Life life);
  bool any_ready(Time now) const;
  std::string numerics(int replica) const;
  int64_t context() const;                           // tokens: the longest of all replicas
  std::vector<std::string> routers(Time now) const;  // that listen to replicas, by the names they gave; sorted

  // --- Requests.
  enum class Why : uint8_t { kFirst, kLost, kSilent, kDrains, kPlanned };  // somebody is asked for an answer
  struct Counts {                                                          // totals
    int64_t continued = 0;  // answers that another replica went on with, because theirs was lost
    int64_t hedged = 0;     // likewise, because it was silent; it may have come back
    int64_t moved = 0;      // because it drains
    int64_t planned = 0;    // because the planner wants it elsewhere
    int64_t retried = 0;    // asked for again before anything was shown
    int64_t inexact = 0;    // continued by a replica of other numerics
  };
  void count(Why why, bool in_mid_answer, bool is_inexact);
  Counts counts() const;
  struct Wish {
    RoutedRequest request;
    std::span<const int> excluded = {};  // tried in vain
    std::optional<int> wanted = {};      // this one or nobody: it was planned
    // Go on with an answer whose first part was computed so: replicas of these numerics come first; with `only` no
    // others are taken.
    std::string_view numerics = {};
    bool only = false;
  };
  std::optional<int> pick(const Wish& wish, Time now);
  // Predicted output of a request for this adapter, tokens: what others for it came to lately.
  double predicted_output(const std::string& adapter) const;
  StreamId sent(int replica, const RoutedRequest& request, Time now);
  void token(int replica, StreamId id, int64_t count);
  // `output`: tokens of a whole answer, for the predictions; nothing when it was cut short.
  void ended(int replica, StreamId id, std::optional<int64_t> output);

  // --- What is planned (planner.h).
  FleetPicture picture(Time now) const;
  void set_placement(std::shared_ptr<const Placement> placement);
  std::shared_ptr<const Placement> placement() const;  // never null

  // Whether a request for it is one for the base model: of no name, "base", or what replicas call it.
  bool is_base(std::string_view model) const;
  // Whether another replica has this adapter in memory.
  bool others_know(int replica, const std::string& adapter) const;

  struct Shown {
    std::string url, failure;
    bool listed = true;  // it should be there
    Life life = Life::kUnknown;
    std::shared_ptr<const ReplicaReport> report;  // never null
    int64_t own_requests = 0;
    double step_seconds = 0, tokens_per_second = 0;
  };
  std::vector<Shown> show(Time now) const;

 private:
  struct Replica {
    std::string url;
    bool listed = false;  // it should be there
    ReplicaLoad load;
    std::shared_ptr<const ReplicaReport> report = std::make_shared<ReplicaReport>();
    bool connected = false, last_words = false;  // the stream is open; it was ended as it should
    Time heard{}, full_until{};
    std::string failure;
  };
  explicit FleetView(const FleetOptions& options) : options_(options) {}
  Life life_of(const Replica& replica, Time now) const;
  const Replica& at(int replica) const;  // one that was never heard of, where there is none
  Replica* find(int replica);            // null: it has left

  const FleetOptions options_;
  mutable std::mutex mutex_;
  std::map<int, Replica> replicas_;  // guarded by mutex_, like all below
  int next_replica_ = 0;
  std::shared_ptr<const Placement> placement_ = std::make_shared<Placement>();
  std::unique_ptr<Picker> picker_;
  std::unordered_map<std::string, double> outputs_;  // by adapter, at most kMaxForecasts
  double mean_output_;
  StreamId next_stream_ = 1;
  Counts counts_;
};

}  // namespace lk
