// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_registry.h"

#include <algorithm>
#include <filesystem>
#include <future>

#include "lk/base/guarded.h"
#include "lk/base/names.h"

namespace lk {
namespace {

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// To whoever asks for it: no paths.
Status cannot_serve(std::string_view model, Trouble::Kind kind) {
  const auto because = [&] {
    switch (kind) {
      case Trouble::kChanged:
        return "its files changed since it was loaded";
      case Trouble::kUnreadable:
        return "its files cannot be read now";
      case Trouble::kNoMemory:
        return "there is no memory for it now";
      default:
        return "its files are no adapter that can be served";
    }
  };
  return unavailable("The model `{}` is unavailable: {}.", model, because());
}

}  // namespace

Trouble::Kind kind_of_trouble(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kDataLoss:
    case StatusCode::kUnsupported:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kAlreadyExists:
      return Trouble::kRefused;
    case StatusCode::kResourceExhausted:
      return Trouble::kNoMemory;
    default:
      return Trouble::kUnreadable;
  }
}

Status is_a_sum(std::string_view name) {
  return already_exists("\"{}\" is the sum of adapters that are here; choose another name", name);
}

Status already_loaded(std::string_view name) {
  return already_exists(
      "The lora adapter '{}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to "
      "True.",
      name);
}

bool AdapterRegistry::is_base(std::string_view name) const {
  return name == "base" || name == options_.base_name ||
         std::ranges::find(options_.base_aliases, name) != options_.base_aliases.end();
}

// --- Loading

AdapterRegistry::AdapterRegistry(EngineService& service, const AdapterRegistryOptions& options,
                                 std::shared_ptr<const TensorStore> checkpoint, StateStore* store)
    : service_(service),
      options_(options),
      store_(store),
      host_(HostTier::create(options_.max_host_bytes)),
      sums_(service, host_, options_.max_composed, options_.max_composed_bytes),
      loader_(service,
              {.roots = options_.roots,
               .num_readers = options_.num_readers,
               .max_host_bytes = options_.max_host_bytes,
               .conversion_cache = options_.conversion_cache},
              std::move(checkpoint), host_),
      queue_(options_.num_threads) {}

AdapterRegistry::~AdapterRegistry() { queue_.stop(); }

void AdapterRegistry::load(LoadRequest request, Loaded done) {
  auto result = std::make_shared<Result<AdapterLease>>(unavailable("the load did not end"));
  const std::string tenant = request.tenant, name = request.name;
  queue_.push(tenant, {.name = name,
                       .load = [this, request = std::move(request), result] { *result = run_load_guarded(request); },
                       .done =
                           [done = std::move(done), result](const Status& ended) {
                             if (done) done(ended.ok() ? std::move(*result) : Result<AdapterLease>(ended));
                           }});
}

Result<AdapterLease> AdapterRegistry::load_and_wait(LoadRequest request) {
  std::promise<Result<AdapterLease>> promise;
  std::future<Result<AdapterLease>> result = promise.get_future();
  load(std::move(request), [&](Result<AdapterLease> loaded) { promise.set_value(std::move(loaded)); });
  return result.get();
}

// Whoever asks for "a+b" while there are an a and a b has their sum, and goes on having it: a name goes before the sum
// that it could be, so nobody may take such a name.
bool AdapterRegistry::means_sum_locked(const std::string& name) const {
  if (!AdapterSums::is_sum(name)) return false;
  const Result<std::vector<AdapterSums::NamedTerm>> terms = AdapterSums::parse(name);
  return terms.ok() && std::ranges::all_of(*terms, [&](const AdapterSums::NamedTerm& term) {
           return table_.find(std::string(term.name)).slot != nullptr;
         });
}

Status AdapterRegistry::check_free(const LoadRequest& request) const {
  LK_RETURN_IF_ERROR(check_adapter_name("adapter name", request.name));
  if (is_base(request.name)) return already_exists("\"{}\" is the base model", request.name);
  std::lock_guard lock(mutex_);
  if (table_.aliases.contains(request.name)) return already_exists("\"{}\" is an alias", request.name);
  const AdapterTable::Name* taken = table_.name(request.name);
  if (!taken && means_sum_locked(request.name)) return is_a_sum(request.name);
  if (!request.replace && !request.version && taken && !taken->versions.contains(0))
    return already_loaded(request.name);
  return check_quota_locked(request);
}

// Of another tenant only those may be replaced that nobody owns. What is known counts like what is loaded.
Status AdapterRegistry::check_quota_locked(const LoadRequest& request) const {
  if (!request.limits) return Status();
  if (const AdapterTable::Name* taken = table_.name(request.name))
    for (const auto& [number, slot] : taken->versions)
      if (!slot.tenant().empty() && slot.tenant() != request.tenant)
        return already_exists("adapter \"{}\" belongs to another tenant", request.name);
  const Tenant& limits = *request.limits;
  int64_t adapters = 1, versions = 1;  // with this one
  const std::string* last = &request.name;
  for (const AdapterKey& own : table_.owned_by(request.tenant)) {  // by name
    const bool same = own.name == request.name;
    adapters += !same && own.name != *last ? 1 : 0;
    versions += same && !request.keep_previous ? 0 : 1;
    last = &own.name;
  }
  if (limits.max_adapters > 0 && adapters > limits.max_adapters)
    return resource_exhausted("the tenant has {} adapters, the most it may have: unload one", limits.max_adapters);
  if (limits.max_versions > 0 && versions > limits.max_versions)
    return resource_exhausted("the tenant has {} versions of adapters, the most it may have: unload one",
                              limits.max_versions);
  return Status();
}

std::string AdapterRegistry::owner_of(const std::string& name) const {
  std::lock_guard lock(mutex_);
  const AdapterTable::Found found = table_.find(name);
  return found.slot ? found.slot->tenant() : "";
}

// What is thrown ends this load; one of what is known is tried again like any other that failed.
Result<AdapterLease> AdapterRegistry::run_load_guarded(const LoadRequest& request) {
  bool changed = false;
  Result<AdapterLease> loaded = guarded("the load of an adapter", [&] { return run_load(request, changed); });
  if (!loaded.ok())
    note_failure(request, changed ? Trouble::kChanged : kind_of_trouble(loaded.status().code()), loaded.status());
  // Loads that a client asked for are counted where he hears of them.
  const bool was_known = request.root || (request.version && !request.digest.empty());
  if (options_.on_load && was_known) options_.on_load(loaded.ok() ? (*loaded)->load_seconds : 0, loaded.ok());
  return loaded;
}

Result<AdapterLease> AdapterRegistry::run_load(const LoadRequest& request, bool& changed) {
  LK_RETURN_IF_ERROR(check_free(request));
  const Clock::time_point begin = Clock::now();
  using Place = VersionLoader::Place;
  LK_ASSIGN_OR_RETURN(AdapterLease adapter, loader_.read({.kind = request.trusted_path ? Place::kTrusted
                                                                  : request.root       ? Place::kListed
                                                                                       : Place::kRoots,
                                                          .name = request.name,
                                                          .path = request.path,
                                                          .tenant = request.tenant}));
  adapter->tenant = request.tenant;
  adapter->files = request.files;
  // Under a number that was given to something else nothing is served.
  changed =
      request.version.value_or(0) > 0 && !request.root && !request.digest.empty() && adapter->digest != request.digest;
  if (changed)
    return data_loss("adapter {}: the files in {} are not what they were when version {} was loaded", request.name,
                     adapter->path, *request.version);
  LK_ASSIGN_OR_RETURN(adapter->version, number_of(request, adapter->digest));
  bool proved = false;
  {
    std::lock_guard lock(mutex_);
    const AdapterTable::Slot* slot = table_.slot({request.name, adapter->version});
    if (slot && slot->lease && request.by_content) {  // the same files again: what is loaded stays
      slot->lease->stamp = adapter->stamp.load();
      AdapterLease loaded = slot->lease;
      table_.erase({request.name, 0});
      return loaded;
    }
    proved = slot && slot->known && slot->known->proved && slot->known->digest == adapter->digest;
  }
  if (options_.probe && !proved) LK_RETURN_IF_ERROR(loader_.prove(*adapter).with_context(request.name));
  // After the probe, for which nobody should build merged weights.
  if (!service_.is_exact(request.name)) adapter->allow_merging();
  if (request.pinned) LK_RETURN_IF_ERROR(pin_in_engine(*adapter, true));
  adapter->load_seconds = seconds_since(begin);
  LK_RETURN_IF_ERROR(publish(request, adapter));
  return adapter;
}

// The number of what was read: versions are not used twice, but what has the content of the last one is that one.
Result<int64_t> AdapterRegistry::number_of(const LoadRequest& request, const std::string& digest) const {
  if (request.version.value_or(0) > 0 && (request.digest.empty() || request.digest == digest)) return *request.version;
  AdapterTable::Last last;
  if (store_) {
    LK_ASSIGN_OR_RETURN(const StateStore::LastVersion stored, store_->last_version(request.name));
    last = {.version = stored.version, .digest = stored.digest};
  }
  std::lock_guard lock(mutex_);
  if (const auto ours = table_.last_version.find(request.name);
      ours != table_.last_version.end() && ours->second.version >= last.version)
    last = ours->second;
  return request.by_content && last.version > 0 && last.digest == digest ? last.version : last.version + 1;
}

Status AdapterRegistry::publish(const LoadRequest& request, const AdapterLease& version) {
  std::lock_guard changes(changes_mutex_);
  version->persisted = store_ && request.persist;
  const bool is_known = request.version && *request.version == version->version;
  std::vector<Retired> retired;  // released after the lock
  {
    std::lock_guard lock(mutex_);
    LK_RETURN_IF_ERROR(check_quota_locked(request));  // again: others may have come since
    const AdapterTable::Name* name = table_.name(request.name);
    if (name && !request.keep_previous && !is_known)
      for (const auto& [number, slot] : name->versions) {
        const AdapterKey key{request.name, number};
        const bool aliased = std::ranges::any_of(
            table_.aliases, [exact = exact_name(key)](const auto& alias) { return alias.second == exact; });
        if (!aliased) retired.emplace_back(key, slot);
      }
  }
  // The store first. The name cannot become an alias meanwhile, because it is busy.
  if (store_) {
    std::vector<std::pair<std::string, int64_t>> forgotten;
    std::vector<int64_t> forgotten_versions;
    for (const Retired& old : retired)
      if (old.persisted) {
        forgotten.emplace_back(old.key.name, old.key.version);
        forgotten_versions.push_back(old.key.version);
      }
    if (version->persisted && !is_known) {
      LK_RETURN_IF_ERROR(store_->put_adapter(stored(*version, true), forgotten_versions));
    } else {
      if (request.by_content) LK_RETURN_IF_ERROR(store_->put_version(version->name, version->version, version->digest));
      if (!forgotten.empty()) LK_RETURN_IF_ERROR(store_->remove(forgotten, {}));
    }
  }
  {
    std::lock_guard lock(mutex_);
    const AdapterTable::Name* name = table_.name(request.name);
    version->replaced = name ? name->default_version : 0;
    put_locked(request, version);
    for (const Retired& old : retired)
      if (old.key.version != version->version) table_.erase(old.key);
    AdapterTable::Last& last = table_.last_version[request.name];
    if (version->version >= last.version) last = {.version = version->version, .digest = version->digest};
  }
  let_go(retired, nullptr);
  retired.clear();
  make_room_for_known();
  return Status();
}

// What can be loaded again is known from now on.
void AdapterRegistry::put_locked(const LoadRequest& request, const AdapterLease& version) {
  const AdapterKey key{request.name, version->version};
  version->last_use = ++num_uses_;
  table_.put(key, version);
  if (!table_.slot(key)->known && (request.root || request.files || version->persisted)) {
    auto known = std::make_unique<KnownAdapter>();
    known->root = request.root;
    known->fleet = request.files != nullptr;
    known->tenant = version->tenant;
    if (!request.root) known->path = version->path;
    table_.know(key, std::move(known));
  }
  if (table_.slot(key)->known) table_.set_content(key, version->digest, options_.probe);
}

// What nobody can ask for any more. `freed` hears of each when its last request ended.
void AdapterRegistry::let_go(const std::vector<Retired>& retired, const std::function<void(Freed)>& freed) {
  std::vector<AdapterLease> leases;
  for (const Retired& old : retired)
    if (old.lease) leases.push_back(old.lease);
  sums_.drop(leases);
  for (const AdapterLease& lease : leases)
    if (lease->pinned.exchange(false)) (void)pin_in_engine(*lease, false);
  if (!freed) return;
  for (const Retired& old : retired) {
    const Freed what{.name = old.key.name,
                     .version = old.key.version,
                     .host_bytes = old.lease && old.lease->host()->on_host() ? old.lease->host_bytes : 0};
    if (!old.lease) {
      freed(what);
      continue;
    }
    old.lease->on_freed([freed, what](int64_t page_bytes) {
      Freed all = what;
      all.page_bytes = page_bytes;
      freed(all);
    });
  }
}

// --- Unloading, pins, aliases

Result<int> AdapterRegistry::unload(const std::string& target, std::function<void(Freed)> freed) {
  const auto [name, version] = split_version(target);
  std::vector<Retired> retired;
  std::vector<std::string> gone;  // aliases
  std::lock_guard changes(changes_mutex_);
  {
    std::lock_guard lock(mutex_);
    const auto add_aliases_of = [&](const std::string& meaning) {
      for (const auto& [alias, target] : table_.aliases)
        if (target == meaning) gone.push_back(alias);
    };
    const AdapterTable::Name* entry = table_.name(name);
    if (!entry || version < 0 || (version > 0 && !entry->versions.contains(version)))
      return not_found("The lora adapter '{}' cannot be found.", target);
    for (const auto& [number, slot] : entry->versions) {
      if (version != 0 && number != version) continue;
      add_aliases_of(exact_name({name, number}));
      retired.emplace_back(AdapterKey{name, number}, slot);
    }
    if (retired.size() == entry->versions.size()) add_aliases_of(name);
  }
  std::vector<std::pair<std::string, int64_t>> forgotten;
  for (const Retired& old : retired)
    if (old.persisted) forgotten.emplace_back(old.key.name, old.key.version);
  if (store_ && !(forgotten.empty() && gone.empty())) LK_RETURN_IF_ERROR(store_->remove(forgotten, gone));
  {
    std::lock_guard lock(mutex_);
    for (const Retired& old : retired) table_.erase(old.key);
    for (const std::string& alias : gone) table_.aliases.erase(alias);
  }
  forget_version_of(name);
  let_go(retired, freed);
  return static_cast<int>(retired.size());
}

// Version numbers are never used again, but for a name that is gone only one place needs to remember the last one.
void AdapterRegistry::forget_version_of(const std::string& name) {
  if (!store_) return;
  const Result<StateStore::LastVersion> stored = store_->last_version(name);
  std::lock_guard lock(mutex_);
  const auto last = table_.last_version.find(name);
  if (stored.ok() && last != table_.last_version.end() && last->second.version <= stored->version && !table_.name(name))
    table_.last_version.erase(last);
}

Status AdapterRegistry::pin_in_engine(AdapterVersion& version, bool pinned) {
  std::promise<Status> promise;
  std::future<Status> done = promise.get_future();
  if (!service_.call(
          [&](TextEngine& engine) { promise.set_value(engine.scheduler().set_pinned(version.id(), pinned)); }))
    return unavailable("the server is shutting down");
  Status status = done.get();
  if (status.ok()) version.pinned = pinned;
  return status;
}

StoredAdapter AdapterRegistry::stored(const AdapterVersion& version, bool is_default) {
  return {.name = version.name,
          .version = version.version,
          .path = version.path,
          .digest = version.digest,
          .pinned = version.pinned.load(),
          .is_default = is_default,
          .tenant = version.tenant};
}

Status AdapterRegistry::check_alias_locked(const std::string& alias, const std::string& target) const {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  if (is_base(alias) || table_.name(alias) || queue_.is_busy(alias))
    return already_exists("\"{}\" is the name of a model", alias);
  if (means_sum_locked(alias)) return is_a_sum(alias);
  if (table_.aliases.contains(target) || !table_.find(target).slot)  // no alias of an alias
    return not_found("The lora adapter '{}' cannot be found.", target);
  return Status();
}

Status AdapterRegistry::check_alias(const std::string& alias, const std::string& target) const {
  std::lock_guard lock(mutex_);
  return check_alias_locked(alias, target);
}

Status AdapterRegistry::change(const std::string& target, std::optional<bool> pinned, const std::string& alias) {
  std::lock_guard changes(changes_mutex_);
  AdapterKey key;
  AdapterLease version;              // null: known, and not loaded
  std::optional<StoredAdapter> row;  // of one that is stored
  bool is_fleet = false;             // what is said of it is kept in the fleet's registry
  {
    std::lock_guard lock(mutex_);
    if (!alias.empty()) LK_RETURN_IF_ERROR(check_alias_locked(alias, target));
    const AdapterTable::Found found = table_.find(target);
    if (!found.slot) return not_found("The lora adapter '{}' cannot be found.", target);
    key = found.key();
    version = found.slot->lease;
    is_fleet = found.slot->is_fleet();
    if (!version && pinned.value_or(false))
      return unavailable("The lora adapter '{}' is not loaded and cannot be pinned now.", target);
    if (pinned && found.slot->persisted()) {
      const bool is_default = table_.is_default(key);
      if (version)
        row = stored(*version, is_default);
      else
        row = {.name = key.name,
               .version = key.version,
               .path = found.slot->known->path,
               .digest = found.slot->known->digest,
               .is_default = is_default,
               .tenant = found.slot->known->tenant};
      row->pinned = *pinned;
    }
  }
  // The pool may refuse a pin, and the store any change: the pin comes first and is taken back when the store fails.
  const bool was_pinned = version && version->pinned;
  if (pinned.value_or(false)) LK_RETURN_IF_ERROR(pin_in_engine(*version, true));
  if (store_ && !is_fleet) {
    std::optional<StateStore::Alias> meaning;
    const auto [name, number] = split_version(target);
    if (!alias.empty()) meaning = {.alias = alias, .name = name, .version = number};
    if (const Status status = store_->put(row, meaning); !status.ok()) {
      if (pinned.value_or(false) && !was_pinned) (void)pin_in_engine(*version, false);
      return status;
    }
  }
  {
    std::lock_guard lock(mutex_);
    if (!alias.empty()) table_.aliases[alias] = target;
    if (pinned && !*pinned) table_.unpin(key);
  }
  return version && pinned && !*pinned ? pin_in_engine(*version, false) : Status();
}

Status AdapterRegistry::remove_alias(const std::string& alias) {
  std::lock_guard changes(changes_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (!table_.aliases.contains(alias)) return not_found("there is no alias \"{}\"", alias);
  }
  if (store_) LK_RETURN_IF_ERROR(store_->remove({}, {alias}));
  std::lock_guard lock(mutex_);
  table_.aliases.erase(alias);
  return Status();
}

std::map<std::string, std::string> AdapterRegistry::aliases() const {
  std::lock_guard lock(mutex_);
  return table_.aliases;
}

// --- Resolving

Result<AdapterRegistry::Resolved> AdapterRegistry::resolve(std::string_view model, const Tenant& tenant,
                                                           std::string* cold) {
  if (model.empty() || is_base(model)) {
    if (!tenant.may_use("base")) return no_such_model(model);
    return Resolved{nullptr, options_.base_name};
  }
  // Ray and SGLang write base:adapter, vLLM the bare name.
  std::string_view name = model;
  for (size_t colon = name.find(':'); colon != name.npos; colon = name.find(':', colon + 1))
    if (is_base(name.substr(0, colon))) {
      name.remove_prefix(colon + 1);
      break;
    }
  std::unique_lock lock(mutex_);
  const AdapterTable::Found found = table_.find(std::string(name));
  if (!found.slot && AdapterSums::is_sum(name)) {  // a name that has a '+' goes before the sum that it could be, too
    lock.unlock();
    return compose(name, tenant, cold);
  }
  // The tenant needs to be allowed the name it asks for or the adapter behind it.
  if (!found.slot || !(tenant.may_use(*found.name) || tenant.may_use(name))) return no_such_model(model);
  if (const AdapterLease& lease = found.slot->lease) {
    lease->last_use = ++num_uses_;
    return Resolved{lease, std::string(name)};
  }
  const Trouble* trouble = found.slot->known->trouble.get();
  if (trouble && trouble->retry_at > Clock::now()) return cannot_serve(model, trouble->kind);
  if (cold) *cold = name;
  return unavailable("The model `{}` is not loaded yet.", model);
}

Result<AdapterRegistry::Resolved> AdapterRegistry::compose(std::string_view expression, const Tenant& tenant,
                                                           std::string* cold) {
  LK_ASSIGN_OR_RETURN(const std::vector<AdapterSums::NamedTerm> named, AdapterSums::parse(expression));
  std::vector<AdapterSums::Term> terms;
  for (const auto& [name, weight] : named) {
    LK_ASSIGN_OR_RETURN(Resolved part, resolve(name, tenant, cold));
    if (!part.adapter) return invalid_argument("model \"{}\": the base model is not part of a sum", expression);
    terms.push_back({.adapter = std::move(part.adapter), .weight = weight});
  }
  const auto is_current = [this](const AdapterSums::Term& term) {
    std::lock_guard lock(mutex_);
    const AdapterTable::Slot* slot = table_.slot({term.adapter->name, term.adapter->version});
    return slot && slot->lease == term.adapter;
  };
  LK_ASSIGN_OR_RETURN(AdapterLease sum,
                      sums_.get(expression, terms, is_current, {.tenant = tenant.name, .max_count = tenant.max_sums}));
  return Resolved{std::move(sum), std::string(expression)};
}

}  // namespace lk
