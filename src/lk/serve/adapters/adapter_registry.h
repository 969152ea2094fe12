// SPDX-License-Identifier: Apache-2.0
// AdapterRegistry: names, versions and aliases of the adapters a server offers, and their life: load (verify, prove on
// a probe prompt), publish, replace, pin, unload. A version never changes; what a name means is switched at one moment;
// a request keeps the version it began with until it ends, and only then is a retired version freed. A version may be
// known without being loaded: the first request for it loads it, and nothing but its own content is ever served as it.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lk/serve/access/state_store.h"
#include "lk/serve/access/tenants.h"
#include "lk/serve/adapters/adapter_sums.h"
#include "lk/serve/adapters/adapter_supply.h"
#include "lk/serve/adapters/adapter_table.h"
#include "lk/serve/adapters/load_queue.h"
#include "lk/serve/adapters/load_waiters.h"
#include "lk/serve/adapters/version_loader.h"
#include "lk/serve/observe/logging.h"

namespace lk {

// What a load under a name that is taken is refused with, in vLLM's words.
Status already_loaded(std::string_view name);

struct AdapterRegistryOptions {
  std::string base_name;                  // what clients call the base model, besides "base"; answers show it
  std::vector<std::string> base_aliases;  // and what else they may call it
  std::vector<std::string>
      roots;  // adapter paths from clients must lie in one of them; empty = loading at run time is refused
  bool probe = true;
  int num_threads = 8;                        // loads at once: the most of one is waiting for the engine
  int num_readers = 2;                        // of them reading, checking and packing: the rest needs no processor
  int64_t max_host_bytes = int64_t{1} << 30;  // of copies in host memory (host_tier.h, memory_plan.h)
  int64_t max_composed = 64;                  // cached weighted sums
  int64_t max_composed_bytes = int64_t{128} << 20;  // of them together, a part of max_host_bytes
  std::string conversion_cache;  // directory for converted PiSSA and OLoRA adapters; empty: converted at each read
  // So many that could be loaded again stay registered when their weights are on disk only; beyond it the least
  // recently used are known by name again.
  int64_t max_idle = 256;
  AdapterSupply* supply = nullptr;                       // of the fleet's adapters; or null
  Log* log = nullptr;                                    // or null; of what nobody waits for
  std::function<void(double seconds, bool ok)> on_load;  // or empty; loads that nobody asked for by hand
};

// What the store refuses or cannot take (kUnavailable and the like) is not in effect.
class AdapterRegistry {
 public:
  // `store` may be null: nothing survives a restart. `checkpoint` is the base model's file (for DoRA), or null.
  AdapterRegistry(EngineService& service, const AdapterRegistryOptions& options,
                  std::shared_ptr<const TensorStore> checkpoint, StateStore* store);
  ~AdapterRegistry();

  struct LoadRequest {
    std::string name, path;
    bool trusted_path = false;   // given by the operator: not confined to the roots
    bool replace = false;        // false: kAlreadyExists when the name is taken
    bool keep_previous = false;  // the old version stays addressable as name@version
    bool pinned = false;
    bool persist = true;
    std::string tenant;                    // whose it will be; "" = nobody's
    std::shared_ptr<const Tenant> limits;  // of the key that asks: its quotas; null: none
    bool by_content = false;               // what has the content of the name's last version is that version
    // The directory that is watched and that `path` lies in; the adapter goes with it.
    std::shared_ptr<const std::string> root;
    // Of an adapter that is known. With a digest nothing else is served as that version.
    std::optional<int64_t> version;
    std::string digest;
    // Of the fleet: its directory, as the supply holds it.
    std::shared_ptr<const void> files;
  };
  using Loaded = std::function<void(Result<AdapterLease>)>;
  // Queues a load; `done` is called on a loader thread, after the version is visible (or the failure is final).
  void load(LoadRequest request, Loaded done);
  Result<AdapterLease> load_and_wait(LoadRequest request);
  // What load() would refuse by the name and the quotas alone, before any file is read.
  Status check_free(const LoadRequest& request) const;

  // --- What is known and not loaded (adapter_registry_known.cpp)
  // A version that was stored: `name@version` with that content and no other. `load_now`: retried until it is loaded.
  void restore(const StoredAdapter& stored, bool load_now);
  // A version of the fleet's registry, of which nothing but its content is served. False when the name is this server's
  // own: a directory that is watched, or what somebody loaded here.
  struct FleetVersion {
    std::string name, path, digest, tenant;
    int64_t version = 0;
  };
  bool offer_fleet(const FleetVersion& version);
  bool is_fleet(const std::string& name) const;  // name, name@version or alias
  void load_restored();                          // those that are to be loaded now; waits for them
  // A directory of a watched one: `root`/`name`. False when somebody else has the name, or nobody may.
  bool offer(const std::string& name, std::shared_ptr<const std::string> root, bool load_now);
  struct Watched {
    enum State : uint8_t { kNothing, kOthers, kOffered, kLoaded } state = kNothing;  // kOthers: loaded by somebody
    uint64_t stamp = 0;                                                              // of the files that were loaded
  };
  Watched watched(const std::string& name) const;
  // The directory is gone: what came from it goes, not what others loaded under its name.
  void withdraw(const std::string& name);
  void set_directories(std::vector<WatchedDirectory> directories);
  std::vector<WatchedDirectory> directories() const;
  // Loads what resolve() found to be cold, for somebody who waits no longer than until `deadline`. `done` is called on
  // a loader thread, or at once. A failure is what resolve() says about it from now on.
  void load_cold(const std::string& cold, const std::string& tenant, Clock::time_point deadline, Loaded done);
  // Once a second: loads again what failed and is wanted, and ends waits that took too long.
  void tick(Clock::time_point now = Clock::now());

  struct Freed {
    std::string name;
    int64_t version = 0;
    int64_t page_bytes = 0, host_bytes = 0;  // host_bytes: 0 when it was on disk only
  };
  // Takes "name" (all versions and their aliases) or "name@version" out of sight at once; `freed` is called once per
  // version when its last request ended and its memory was given back. Returns how many versions that are. kNotFound.
  Result<int> unload(const std::string& name, std::function<void(Freed)> freed);
  // Pins or unpins the adapter, lets an alias mean it from now on, or both: all of it or nothing. kResourceExhausted
  // when its pages do not fit beside the others that are pinned.
  Status change(const std::string& target, std::optional<bool> pinned, const std::string& alias);
  Status set_pinned(const std::string& name, bool pinned) { return change(name, pinned, ""); }
  // What change() would say of the alias, before anything is changed anywhere.
  Status check_alias(const std::string& alias, const std::string& target) const;
  // `target` is "name" or "name@version".
  Status set_alias(const std::string& alias, const std::string& target) { return change(target, {}, alias); }
  Status remove_alias(const std::string& alias);
  std::map<std::string, std::string> aliases() const;

  struct Resolved {
    AdapterLease adapter;  // null: the base model
    std::string name;      // as the answer and the metrics show it
  };
  // "", "base", base name -> base; name, name@version, alias, base:name; a*0.7+b*0.3. kNotFound for what does not exist
  // or the tenant may not use, with the same words; kUnavailable for what cannot be served now. Looks at no file. With
  // `cold` set after kUnavailable, load_cold() and another try will do. May build a sum: not on an io thread.
  Result<Resolved> resolve(std::string_view model, const Tenant& tenant, std::string* cold = nullptr);

  // The tenant whose key loaded what the name means; "" = nobody's, or not there.
  std::string owner_of(const std::string& name) const;

  // --- Lists, a page at a time, in order (adapter_registry_lists.cpp). They look at a few hundred entries at a time
  // under the lock: nobody waits for the whole of a long list.
  using Shown = std::function<bool(const std::string& name)>;  // empty: all
  struct Listed {
    std::string name, path;
    std::string target;   // of an alias
    int64_t created = 0;  // 0: not loaded
  };
  struct NamePage {
    std::vector<Listed> entries;
    bool has_more = false;
  };
  // Names and aliases that can be asked for, those behind `after`.
  NamePage list_names(const std::string& after, size_t limit, const Shown& shown = {}) const;
  struct AdapterPage {
    std::vector<AdapterSnapshot> entries;
    bool has_more = false;
  };
  // Versions, known ones too; those behind `after`, which is "name" or "name@version".
  AdapterPage list(const EngineService::Snapshot& engine, const std::string& after, size_t limit,
                   const Shown& shown = {}) const;
  std::vector<AdapterSnapshot> list_loaded(const EngineService::Snapshot& engine) const;
  std::optional<AdapterSnapshot> find(const std::string& name, const EngineService::Snapshot& engine) const;
  std::vector<AdapterLease> versions() const;  // loaded default versions, by name
  int64_t num_loading() const { return queue_.size(); }
  struct Counts {
    int64_t names = 0;                                                // loaded or not
    int64_t changed = 0, unreadable = 0, no_memory = 0, refused = 0;  // not loaded because of that
  };
  Counts counts() const;
  // Of the copies in host memory, of all versions and sums that live.
  HostTier::Stats host_stats() const { return host_->stats(); }
  HostTier& host_tier() { return *host_; }
  AdapterSums::Stats sum_stats() const { return sums_.stats(); }
  const std::string& base_name() const { return options_.base_name; }
  const std::vector<std::string>& base_aliases() const { return options_.base_aliases; }
  bool is_base(std::string_view name) const;
  bool means_sum_locked(const std::string& name) const;

 private:
  struct Retired;

  Result<AdapterLease> run_load_guarded(const LoadRequest& request);
  Result<AdapterLease> run_load(const LoadRequest& request, bool& changed);
  Result<int64_t> number_of(const LoadRequest& request, const std::string& digest) const;
  Status publish(const LoadRequest& request, const AdapterLease& version);
  Status check_quota_locked(const LoadRequest& request) const;
  Status check_alias_locked(const std::string& alias, const std::string& target) const;
  void put_locked(const LoadRequest& request, const AdapterLease& version);
  void let_go(const std::vector<Retired>& retired, const std::function<void(Freed)>& freed);
  void forget_version_of(const std::string& name);
  static StoredAdapter stored(const AdapterVersion& version, bool is_default);
  Status pin_in_engine(AdapterVersion& version, bool pinned);
  Result<Resolved> compose(std::string_view expression, const Tenant& tenant, std::string* cold);
  // What is known.
  void note_failure(const LoadRequest& request, Trouble::Kind kind, const Status& status);
  void queue_load(const AdapterKey& key, const std::string& asker, std::function<void()> then);
  void load_known(const AdapterKey& key, const std::string& asker, std::function<void()> then = {});
  Result<AdapterLease> run_known_load(const AdapterKey& key);
  void finish_waiting(const AdapterKey& key, const Result<AdapterLease>& loaded);
  void make_room_for_known();
  // Lists.
  template <class Visit>
  void walk(const std::string& after, Visit visit) const;
  AdapterSnapshot describe(const AdapterKey& key, const AdapterTable::Slot& slot,
                           const EngineService::Snapshot& engine) const;

  EngineService& service_;
  const AdapterRegistryOptions options_;
  StateStore* const store_;
  const std::shared_ptr<HostTier> host_;
  AdapterSums sums_;
  VersionLoader loader_;

  mutable std::mutex mutex_;
  AdapterTable table_;
  LoadWaiters waiters_;
  std::vector<WatchedDirectory> directories_;
  std::atomic<int64_t> num_uses_{0};
  // One change of what is offered at a time, in the store and then in memory: what cannot be stored never happened.
  // Before mutex_; may be held while the store waits for its file, so nothing that answers completions takes it.
  std::mutex changes_mutex_;
  LoadQueue queue_;  // last: its threads use the rest
};

// What a failed load says about the adapter.
Trouble::Kind kind_of_trouble(StatusCode code);

// One version that leaves its name.
struct AdapterRegistry::Retired {
  AdapterKey key;
  AdapterLease lease;  // or null
  bool persisted = false;

  Retired(AdapterKey key, const AdapterTable::Slot& slot)
      : key(std::move(key)), lease(slot.lease), persisted(slot.persisted()) {}
};

// The same words for what does not exist and for what the tenant may not use.
inline Status no_such_model(std::string_view model) {
  return not_found("The model `{}` does not exist or you do not have access to it.", model);
}

}  // namespace lk
