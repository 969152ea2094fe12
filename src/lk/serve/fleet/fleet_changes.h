// SPDX-License-Identifier: Apache-2.0
// FleetChanges: publications, deletions and aliases, which all of a fleet has to agree to: each is a transaction in the
// registry, made from what stands there at that moment. None of them waits; `done` is called once, on some thread.
// kUnavailable: the registry is away, or somebody else changed the same at the same moment; kCancelled: this server
// ends.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/registry/registry.h"
#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/fleet/adapter_cache.h"
#include "lk/serve/fleet/fleet_catalog.h"
#include "lk/serve/fleet/publication_pace.h"

namespace lk {

class FleetChanges {
 public:
  // All of them must live until stop().
  struct Parts {
    Registry& registry;
    AdapterCache& cache;
    FleetCatalog& catalog;
    FleetCatalog::Warn warn;
  };
  explicit FleetChanges(Parts parts);
  ~FleetChanges() { stop(); }
  // `roots`: where adapters that clients name may lie.
  void attach(AdapterRegistry& adapters, std::vector<std::string> roots);
  void set_publisher(const std::string& id);  // of this server, in what it publishes
  // Behind Registry::close(), which ends what waits for it. Who waits hears of the end before it returns.
  void stop();

  // A new version of `request.name`, of the files as they are now; visible once it was proved here.
  void publish(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done);
  using Done = std::function<void(const Status&)>;
  void remove(const std::string& target, Done done);  // "name", "name@version" or an alias
  void set_alias(const std::string& alias, const std::string& target, Done done);

 private:
  // One of the changes that may wait or be under way; given back with its last reference. Null: there are too many.
  using Slot = std::shared_ptr<void>;
  Slot take_slot();
  // `failed`: what it threw. False: not taken, the server ends.
  bool run(Slot slot, std::function<void()> task, Done failed);
  void change(std::function<Status()> task, Done done);
  struct Publication;
  void publish_now(const std::shared_ptr<Publication>& publication);
  Status prepare(Publication& publication);
  void conclude(Publication& publication, Result<AdapterLease> loaded);
  void give_up(Publication& publication, const Status& status);
  struct Reserved {
    int64_t version = 0, revision = 0;
  };
  Result<Reserved> reserve(const AdapterRecord& record, bool replace);
  Status remove_now(const std::string& target);
  Status make_removal(const std::string& target, Registry::Transaction& change, bool& is_all);
  Status make_alias(const std::string& alias, const std::string& target, Registry::Transaction& change);
  Status set_alias_now(const std::string& alias, const std::string& target);

  const Parts parts_;
  AdapterRegistry* adapters_ = nullptr;
  std::vector<std::string> roots_;
  std::atomic<int64_t> slots_ = 0;
  std::mutex mutex_;
  std::string publisher_;  // guarded by mutex_, like all below
  PublicationPace pace_;
  bool stopped_ = false;
  std::unique_ptr<Workshop> bench_;
};

}  // namespace lk
