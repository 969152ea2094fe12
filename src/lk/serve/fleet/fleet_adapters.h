// SPDX-License-Identifier: Apache-2.0
// FleetAdapters: this server's part in a fleet that has a registry. It stands there as a member; what anybody publishes
// there is offered here, and brought from another replica when somebody asks for it; what is loaded, deleted or renamed
// here is published there first.
//
// The registry may be away at any time: then nothing is published, and everything else goes on, also after a restart.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/registry/adapter_cache.h"
#include "lk/registry/adapter_fetcher.h"
#include "lk/registry/member.h"
#include "lk/registry/registry.h"
#include "lk/serve/adapters/adapter_registry.h"
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

  // --- Changes, for everybody. None of them waits; `done` once, on some thread. kUnavailable: the registry is away;
  // kCancelled: this server ends.
  // A new version of `request.name`, of the files as they are now; visible once it was proved here.
  void publish(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done);
  void remove(const std::string& target,
              std::function<void(const Status&)> done);  // "name", "name@version" or an alias
  void set_alias(const std::string& alias, const std::string& target, std::function<void(const Status&)> done);
  bool has_alias(const std::string& alias) const;

  std::optional<AdapterCache::Blob> find_blob(const std::string& sha256) { return cache_->find(sha256); }
  bool is_reachable() const { return registry_->is_reachable(); }
  AdapterCache::Stats cache_stats() const { return cache_->stats(); }
  AdapterFetcher::Stats fetch_stats() const { return fetcher_->stats(); }

 private:
  FleetAdapters(const FleetAdaptersOptions& options, Log* log) : options_(options), log_(log) {}
  void warn(std::string_view what, std::string_view reason) const;
  // One of the changes that may wait or be under way; given back with its last reference. Null: there are too many.
  using Slot = std::shared_ptr<void>;
  Slot take_slot();
  // `failed`: what it threw. False: not taken, the server ends.
  bool run(Slot slot, std::function<void()> task, std::function<void(const Status&)> failed);
  void change(std::function<Status()> task, std::function<void(const Status&)> done);
  std::vector<std::string> holders(const AdapterRecord& record) const;
  void on_members(const Registry::Entries& entries);
  void on_adapters(const Registry::Entries& entries);
  void on_aliases(const Registry::Entries& entries);
  void apply(const Registry::Entries& entries);
  void apply_aliases();
  void load_catalog();
  void save();
  void write_catalog();
  void release(const std::string& content);  // unless a version has it
  struct Publication;
  void publish_now(const std::shared_ptr<Publication>& publication);
  void conclude(Publication& publication, Result<AdapterLease> loaded);
  void give_up(Publication& publication, const Status& status);
  struct Reserved {
    int64_t version = 0, revision = 0;
  };
  Result<Reserved> reserve(const AdapterRecord& record, bool replace);
  Status remove_now(const std::string& target);
  Status set_alias_now(const std::string& alias, const std::string& target);
  Status commit(const Registry::Transaction& transaction, std::string_view what);
  bool has_happened(const Registry::Transaction& transaction);

  const FleetAdaptersOptions options_;
  Log* const log_;
  std::unique_ptr<AdapterCache> cache_;
  std::unique_ptr<Registry> registry_;
  AdapterRegistry* adapters_ = nullptr;
  std::vector<std::string> roots_;
  std::unique_ptr<MemberReader> member_reader_;

  std::atomic<int64_t> slots_ = 0;
  mutable std::mutex mutex_;
  Member self_;  // guarded by mutex_, like all below
  std::vector<Member> members_;
  Registry::Entries entries_, aliases_;  // as last seen; what is absent now stays
  struct Content {
    AdapterRecord record;        // of one of its versions
    std::set<std::string> keys;  // of all
  };
  std::map<std::string, Content> contents_;  // of ready versions, by content
  std::map<std::string, int64_t> told_;      // revisions of what was ignored, by name
  std::set<std::string> offered_;            // keys of versions that were
  std::set<std::string> refused_;            // keys of versions whose names are this server's own, by now
  bool save_waits_ = false;                  // the catalog will be written, with all that is known by then
  bool stopped_ = false;
  std::unique_ptr<AdapterFetcher> fetcher_;
  std::unique_ptr<Workshop> tasks_bench_;
};

// Files of an adapter's directory that are read, as they are called there.
std::vector<std::string> adapter_file_names(const std::string& directory);

}  // namespace lk
