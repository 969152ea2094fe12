// SPDX-License-Identifier: Apache-2.0
// KubernetesRegistry: the registry in objects of a Kubernetes API (kubernetes_objects.h), for a fleet whose members are
// the pods of a Service. Each watch has a thread, places another.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lk/registry/kubernetes_client.h"
#include "lk/registry/kubernetes_objects.h"
#include "lk/registry/registry.h"

namespace lk {

class KubernetesRegistry final : public Registry {
 public:
  struct Options {
    std::string name_space, fleet;
    std::chrono::seconds time_to_live{15};       // of a place, once its process is silent
    std::chrono::milliseconds renew{5000};       // a third of it
    std::chrono::milliseconds announce{60'000};  // how often what a member says of itself is looked for
    std::chrono::milliseconds retry{500};
    std::chrono::seconds watch{240};  // then everything is listed again
    std::function<void(std::string_view event, std::string_view detail)> log;
  };
  KubernetesRegistry(std::unique_ptr<KubernetesClient> client, Options options);
  ~KubernetesRegistry() override;

  // As of the interface. A transaction is about tenants and keys, or about neither; members are where the cluster says
  // they are, and announcing one only adds what it says of itself. A name that is announced otherwise is a Lease.
  Result<Entries> list(const std::string& prefix) override;
  Result<bool> commit(const Transaction& transaction) override;
  void watch(const std::string& prefix, std::function<void(const Entries&)> on_change) override;
  void announce(Announcement announcement) override;
  void withdraw() override;
  void close() override;
  bool is_reachable() const override;

 private:
  struct Following;
  // Where entries of such names are.
  struct Place;  // of announcements
  struct Objects {
    std::string path, kind;  // of the collection; "ConfigMap"
    std::string selector;    // query of list and watch
    bool is_secret = false;
  };
  Objects objects_for(std::string_view prefix) const;
  Objects slices() const;
  std::string object_name() const { return "lorikeet-" + options_.fleet; }
  Result<KubernetesEntries> read(const Objects& objects);
  Result<Entries> read_members(const std::vector<boost::json::object>& slices);
  // Of the watch threads.
  struct Listing {
    std::map<std::string, boost::json::object> items;  // by name
    std::string resource_version;
  };
  Result<Listing> list_all(const Objects& objects);
  Result<Entries> entries_of(const std::string& prefix, const Objects& objects, const Listing& listing);
  void watch_until_stopped(const std::string& prefix, const std::function<void(const Entries&)>& on_change);
  Status follow(const Objects& objects, Listing& listing, const std::function<void()>& on_change);
  static void on_event(Following& following, std::string_view json);
  // Of the places' thread.
  void hold_until_stopped();
  Status hold(const Announcement& announcement);
  Status introduce(const Announcement& member);
  Status hold_lease(const Announcement& announcement);
  void let_go(const Announcement& announcement);
  std::string lease_path(std::string_view name) const;

  bool pause(std::chrono::milliseconds time);  // false: stopping
  void note(const Status& outcome);
  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  const Options options_;
  const std::unique_ptr<KubernetesClient> client_;
  const std::string identity_;  // of this process, random
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;                  // guarded by mutex_, like all below
  bool withdrawn_ = false, gone_ = false;  // it should not be there any more; it is not
  bool reachable_ = false, told_ = false;
  std::map<std::string, Announcement> announced_;
  bool new_announcement_ = false;
  std::vector<std::weak_ptr<Following>> followings_;
  // The places' thread only.
  struct Seen {
    std::string holder, renewed;
    std::chrono::steady_clock::time_point since;
  };
  std::map<std::string, Seen> seen_;  // leases of others, by name
  std::map<std::string, std::chrono::steady_clock::time_point> introduced_;
  std::map<std::string, std::string> refused_;  // why a name was not taken when that was last logged
  std::vector<std::thread> threads_;
};

}  // namespace lk
