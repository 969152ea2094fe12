// SPDX-License-Identifier: Apache-2.0
// AdapterRegistry: names, versions and aliases of the adapters a server offers, and their life: load (verify, prove on
// a probe prompt), publish, replace, pin, unload. A version never changes; what a name means is switched at one moment;
// a request keeps the version it began with until it ends, and only then is a retired version freed.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <semaphore>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "lk/serve/access/state_store.h"
#include "lk/serve/access/tenants.h"
#include "lk/serve/adapters/adapter_sums.h"
#include "lk/serve/adapters/adapter_version.h"

namespace lk {

struct AdapterRegistryOptions {
  std::string base_name;  // what clients call the base model, besides "base"
  std::vector<std::string>
      roots;  // adapter paths from clients must lie in one of them; empty = loading at run time is refused
  bool probe = true;
  int num_threads = 8;                        // loads at once: the most of one is waiting for the engine
  int num_readers = 2;                        // of them reading, checking and packing: the rest needs no processor
  int64_t max_host_bytes = int64_t{1} << 30;  // of copies in host memory (host_tier.h, memory_plan.h)
  int64_t max_composed = 64;                  // cached weighted sums
  int64_t max_composed_bytes = int64_t{128} << 20;  // of them together, a part of max_host_bytes
  std::string conversion_cache;  // directory for converted PiSSA and OLoRA adapters; empty: converted at each read
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
    std::shared_ptr<const Tenant> limits;  // of the key that asks: its roots and quotas; null: all roots, no quota
    std::optional<int64_t> version;        // of a restored adapter
  };
  using Loaded = std::function<void(Result<AdapterLease>)>;
  // Queues a load; `done` is called on a loader thread, after the version is visible (or the failure is final).
  void load(LoadRequest request, Loaded done);
  Result<AdapterLease> load_and_wait(LoadRequest request);

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
  // `target` is "name" or "name@version".
  Status set_alias(const std::string& alias, const std::string& target) { return change(target, {}, alias); }
  Status remove_alias(const std::string& alias);
  std::map<std::string, std::string> aliases() const;

  struct Resolved {
    AdapterLease adapter;  // null: the base model
    std::string name;      // as the answer and the metrics show it
  };
  // "", "base", base name -> base; name, name@version, alias, base:name; a*0.7+b*0.3. kNotFound for what does not exist
  // or the tenant may not use, with the same words. May build a sum: not on an io thread.
  Result<Resolved> resolve(std::string_view model, const Tenant& tenant);

  // The tenant whose key loaded what the name means; "" = nobody's, or not there.
  std::string owner_of(const std::string& name) const;

  std::vector<AdapterSnapshot> list(const EngineService::Snapshot& engine) const;
  std::optional<AdapterSnapshot> find(const std::string& name, const EngineService::Snapshot& engine) const;
  std::vector<AdapterLease> versions() const;  // default versions only, by name
  int64_t num_loading() const;
  // Of the copies in host memory, of all versions and sums that live.
  HostTier::Stats host_stats() const { return host_->stats(); }
  HostTier& host_tier() { return *host_; }
  AdapterSums::Stats sum_stats() const { return sums_.stats(); }
  const std::string& base_name() const { return options_.base_name; }

 private:
  struct Job {
    LoadRequest request;
    Loaded done;
  };
  struct Name {
    std::map<int64_t, AdapterLease> versions;
    int64_t default_version = 0;
  };

  void loader_main();
  Result<AdapterLease> run_load(const LoadRequest& request);
  Result<AdapterLease> create(const LoadRequest& request, int64_t version);
  Status prove(AdapterVersion& version);
  Status publish(const LoadRequest& request, const AdapterLease& version);
  Status check_free(const LoadRequest& request) const;
  Status check_quota_locked(const LoadRequest& request) const;
  void forget_version_of(const std::string& name);
  static StoredAdapter stored(const AdapterVersion& version, bool is_default);
  AdapterLease find_locked(const std::string& name) const;  // name, name@version or alias; null: not there
  Status pin_in_engine(AdapterVersion& version, bool pinned);
  Result<Resolved> compose(std::string_view expression, const Tenant& tenant);
  AdapterSnapshot describe(const AdapterVersion& version, const EngineService::Snapshot& engine) const;
  Result<std::vector<TokenLogprob>> run_probe(AdapterId adapter);

  EngineService& service_;
  const AdapterRegistryOptions options_;
  const std::shared_ptr<const TensorStore> checkpoint_;
  StateStore* const store_;
  const std::shared_ptr<HostTier> host_;
  AdapterSums sums_;
  std::vector<int32_t> probe_tokens_;
  std::vector<TokenLogprob> base_probe_;  // set once, by the first load

  mutable std::mutex mutex_;
  std::map<std::string, Name> names_;
  std::map<std::string, std::string> aliases_;   // alias -> name or name@version
  std::map<std::string, int64_t> last_version_;  // of names that are here, or that no store remembers
  std::condition_variable wanted_;
  std::deque<Job> jobs_;
  std::set<std::string> busy_;  // names being loaded: one load per name at a time
  int64_t num_loading_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> loaders_;
  std::counting_semaphore<> readers_;
  std::mutex probe_mutex_;
  // One change of what is offered at a time, in the store and then in memory: what cannot be stored never happened.
  // Before mutex_; may be held while the store waits for its file, so nothing that answers completions takes it.
  std::mutex changes_mutex_;
};

}  // namespace lk
