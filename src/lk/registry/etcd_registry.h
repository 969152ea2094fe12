// SPDX-License-Identifier: Apache-2.0
// EtcdRegistry: the registry in etcd's keys below /lorikeet/FLEET/. Each watch has a thread, what is announced another:
// none of them can hold up the lease.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lk/registry/etcd_client.h"
#include "lk/registry/registry.h"

namespace lk {

class EtcdRegistry final : public Registry {
 public:
  struct Options {
    std::string prefix;                     // of all keys, with a '/' at the end
    std::chrono::seconds time_to_live{15};  // of what is announced, once its process is silent
    std::chrono::milliseconds look{5000};   // how often an endpoint that says nothing is asked whether it lives
    std::chrono::milliseconds retry{500};
    // How often everything is listed again, whatever a watch says: a store that lost its data, and has as many
    // changes again as before, cannot be told from one that did not.
    std::chrono::milliseconds relist{600'000};
    std::function<void(std::string_view event, std::string_view detail)> log;
  };
  EtcdRegistry(std::unique_ptr<EtcdClient> client, Options options);
  ~EtcdRegistry() override;

  Result<Entries> list(const std::string& prefix) override;
  Result<bool> commit(const Transaction& transaction) override;
  void watch(const std::string& prefix, std::function<void(const Entries&)> on_change) override;
  void announce(Announcement announcement) override;
  void withdraw() override;
  void close() override;
  bool is_reachable() const override;

 private:
  struct Listing {
    Entries entries;
    int64_t revision = 0;  // of the whole store
  };
  struct Following;
  struct Place {
    Announcement announcement;
    int64_t revision = 0;  // of what this process put there; 0: nothing
    bool displaced = false;
    std::string told;  // what stood there instead when that was last logged
  };
  std::string key(std::string_view name) const { return to_base64(options_.prefix + std::string(name)); }
  Result<Listing> read(const std::string& prefix);
  // Of the watch threads.
  void watch_until_stopped(const std::string& prefix, const std::function<void(const Entries&)>& on_change);
  void follow(const std::string& prefix, Listing listing, Entries& seen,
              const std::function<void(const Entries&)>& on_change);
  static void on_message(Following& following, size_t prefix_length, std::string_view json);
  // Of the lease's thread.
  void renew_until_stopped();
  Status renew();
  Status take_place(Place& place);

  bool pause(std::chrono::milliseconds time);  // false: stopping
  void note(const Status& outcome);
  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  const Options options_;
  const std::unique_ptr<EtcdClient> client_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;                  // guarded by mutex_, like all below
  bool withdrawn_ = false, gone_ = false;  // it should not be there any more; it is not
  bool reachable_ = false, told_ = false;
  std::map<std::string, Announcement> announced_;
  bool new_announcement_ = false;
  std::vector<std::weak_ptr<Following>> followings_;
  // The lease's thread only.
  std::map<std::string, Place> places_;
  int64_t lease_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace lk
