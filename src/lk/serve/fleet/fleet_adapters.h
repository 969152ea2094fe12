// SPDX-License-Identifier: Apache-2.0
// FleetAdapters: this server's part in a fleet that has a registry. It stands there as a member; what anybody publishes
// there is offered here (FleetCatalog), and brought from another replica when somebody asks for it; what is loaded,
// deleted or renamed here is published there first (FleetChanges).
//
// The registry may be away at any time: then nothing is published, and everything else goes on, also after a restart.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lk/registry/member.h"
#include "lk/registry/registry.h"
#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/fleet/adapter_cache.h"
#include "lk/serve/fleet/adapter_fetcher.h"
#include "lk/serve/fleet/fleet_catalog.h"
#include "lk/serve/fleet/fleet_changes.h"
#include "lk/serve/observe/logging.h"

namespace lk {

struct FleetAdaptersOptions {
  std::string registry;                   // etcd://...
  std::string registry_ca, replica_ca;    // PEM files of authorities instead of the system's
  std::string key;                        // of scope fleet, at every replica; "" = replicas without keys
  std::string directory;                  // for adapters of the fleet, this server's own
  int64_t max_bytes = int64_t{16} << 30;  // of these
  std::function<void()> on_drain;         // somebody wants this server to end (`lorikeet fleet drain`)
};

class FleetAdapters final : public AdapterSupply {
 public:
  // `registry`: instead of the one at options.registry.
  static Result<std::unique_ptr<FleetAdapters>> open(const FleetAdaptersOptions& options, Log* log,
                                                     std::unique_ptr<Registry> registry = nullptr);
  ~FleetAdapters() override;

  // `adapters` must live until stop().
  void attach(AdapterRegistry& adapters, std::vector<std::string> roots);
  // From now on the fleet knows of this server, and this server of its changes. What was known of the fleet before a
  // restart is offered at once. Names that the server has by then are its own.
  void join(const Member& member);
  void leave();  // routers send nothing new; two seconds at most
  void stop();   // no callback runs any more when it returns

  // --- AdapterSupply
  std::shared_ptr<const void> hold(const std::string& path) override;
  void fetch(const std::string& path, std::function<void(const Status&)> done) override;

  FleetChanges& changes() { return *changes_; }
  const FleetCatalog& catalog() const { return *catalog_; }

  std::optional<AdapterCache::Blob> find_blob(const std::string& sha256) { return cache_->find(sha256); }
  bool is_reachable() const { return registry_->is_reachable(); }
  AdapterCache::Stats cache_stats() const { return cache_->stats(); }
  AdapterFetcher::Stats fetch_stats() const { return fetcher_->stats(); }

 private:
  FleetAdapters(const FleetAdaptersOptions& options, Log* log) : options_(options), log_(log) {}
  void warn(std::string_view what, std::string_view reason) const;
  std::vector<std::string> holders(const AdapterRecord& record) const;
  void on_members(const Registry::Entries& entries);

  const FleetAdaptersOptions options_;
  Log* const log_;
  std::unique_ptr<AdapterCache> cache_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<FleetCatalog> catalog_;
  std::unique_ptr<FleetChanges> changes_;
  std::unique_ptr<MemberReader> member_reader_;
  std::unique_ptr<AdapterFetcher> fetcher_;
  mutable std::mutex mutex_;
  Member self_;  // guarded by mutex_, like all below
  std::vector<Member> members_;
};

}  // namespace lk
