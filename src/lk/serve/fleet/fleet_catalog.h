// SPDX-License-Identifier: Apache-2.0
// FleetCatalog: what the fleet's registry says of adapters and aliases, and what this server makes of it: versions are
// offered and taken away, aliases set. It is kept on disk, so that a restart while the registry is away takes nothing.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "lk/base/workshop.h"
#include "lk/registry/registry.h"
#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/fleet/adapter_cache.h"

namespace lk {

class FleetCatalog {
 public:
  using Warn = std::function<void(std::string_view what, std::string_view reason)>;
  // The file lies in `directory`.
  FleetCatalog(std::string directory, AdapterCache& cache, Warn warn);
  ~FleetCatalog() { stop(); }
  // `adapters` must live until the last call.
  void attach(AdapterRegistry& adapters) { adapters_ = &adapters; }
  void load();  // what was known before a restart
  void stop();  // what is not on disk by then is written

  // All entries as the registry has them now. What is absent stays: a registry that lost its data takes nothing.
  void on_adapters(const Registry::Entries& entries);
  void on_aliases(const Registry::Entries& entries);

  std::optional<AdapterRecord> record_of(const std::string& content) const;  // one of its ready versions
  bool has_alias(const std::string& alias) const;
  int64_t num_versions(const std::string& tenant) const;  // it ever published, also those that are deleted
  int64_t last_version(const std::string& name) const;    // 0: none is known
  void release(const std::string& content);               // in the cache, unless a version has it

 private:
  bool apply(const std::string& key, const Registry::Entry& entry);  // whether there is more to keep
  void take_away(const std::string& key, const AdapterRecord& deleted);
  void apply_aliases();
  bool is_news(const std::string& key, const Registry::Entry& entry);
  void save();
  void write();

  const std::string directory_;
  AdapterCache& cache_;
  const Warn warn_;
  AdapterRegistry* adapters_ = nullptr;
  mutable std::mutex mutex_;
  Registry::Entries entries_, aliases_;  // as last seen; guarded by mutex_, like all below
  struct Content {
    AdapterRecord record;        // of one of its versions
    std::set<std::string> keys;  // of all
  };
  std::map<std::string, Content> contents_;     // of ready versions, by content
  std::map<std::string, int64_t> versions_of_;  // by tenant
  std::map<std::string, int64_t> told_;         // revisions of what was ignored, by key
  std::set<std::string> offered_;               // keys of versions that were
  std::set<std::string> refused_;               // keys of versions whose names are this server's own, by now
  bool save_waits_ = false;                     // it will be written, with all that is known by then
  bool is_saved_ = true;                        // the file has all of it; if it could not be written, it has not
  std::unique_ptr<Workshop> bench_;             // null: stopped
};

// Nothing is fetched or published that no loader would read, or that lacks what one needs.
Status check_adapter_files(const AdapterRecord& record);

}  // namespace lk
