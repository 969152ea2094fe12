// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_accounts.h"

#include <algorithm>
#include <ctime>

#include <boost/json/object.hpp>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/registry/decision.h"

namespace lk {
namespace {

constexpr size_t kMaxFile = size_t{256} << 20;
constexpr size_t kOperations = 100;  // of one transaction; etcd takes 128
constexpr size_t kMostUntold = 16;

}  // namespace

Result<std::unique_ptr<FleetAccounts>> FleetAccounts::open(std::unique_ptr<Registry> registry,
                                                           const std::string& file) {
  std::unique_ptr<FleetAccounts> self(new FleetAccounts(std::move(registry), file));
  LK_RETURN_IF_ERROR(self->load());
  self->bench_ = std::make_unique<Workshop>(std::vector<Workshop::Bench>{{.name = "lk-accounts", .num_threads = 1}});
  if (const Status seen = self->look(); !seen.ok())
    self->tell("registry_away",
               fmt::format("{}; {} keys that were known before hold", seen.message(), self->keys_.size()));
  FleetAccounts* raw = self.get();
  for (const std::string_view prefix : {kTenants, kKeys})
    raw->registry_->watch(std::string(prefix), [raw](const Registry::Entries& entries) { raw->take(entries, true); });
  return self;
}

FleetAccounts::~FleetAccounts() {
  registry_->close();
  bench_.reset();
  if (unsaved_) write();
}

void FleetAccounts::set_log(std::function<void(std::string_view, std::string_view)> log) {
  std::lock_guard lock(mutex_);
  log_ = std::move(log);
  if (!log_) return;
  for (const auto& [what, reason] : std::exchange(untold_, {})) log_(what, reason);
}

void FleetAccounts::tell(std::string_view what, std::string_view reason) {
  std::lock_guard lock(mutex_);
  if (log_)
    log_(what, reason);
  else if (untold_.size() < kMostUntold)
    untold_.emplace_back(what, reason);
}

// --- What is known

Result<bool> FleetAccounts::changed() {
  std::lock_guard lock(mutex_);
  return std::exchange(changed_, false);
}

Result<AccountStore::Accounts> FleetAccounts::accounts() {
  std::lock_guard lock(mutex_);
  Accounts accounts;
  for (const auto& [name, record] : tenants_)
    if (!record.removed) accounts.tenants.push_back(record.tenant);
  for (const auto& [id, key] : keys_) accounts.keys.push_back(key);
  std::ranges::stable_sort(accounts.keys, {}, &ApiKey::created);
  return accounts;
}

Status FleetAccounts::look() {
  for (const std::string_view prefix : {kTenants, kKeys}) {
    LK_ASSIGN_OR_RETURN(const Registry::Entries entries, registry_->list(std::string(prefix)));
    take(entries, false);
  }
  return Status();
}

void FleetAccounts::take(const Registry::Entries& entries, bool is_latest) {
  std::vector<std::pair<std::string, std::string>> ignored;
  bool news = false;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, entry] : entries) {
      const auto known = entries_.find(name);
      if (known != entries_.end() &&
          (known->second.value == entry.value || (!is_latest && known->second.revision >= entry.revision)))
        continue;
      if (take_one(name, entry))
        news = true;
      else if (std::exchange(told_[name], entry.revision + 1) != entry.revision + 1)
        ignored.emplace_back(name, "it is of a form that is not known here, or damaged");
    }
    changed_ |= news;
  }
  for (const auto& [name, reason] : ignored) tell("account_ignored", fmt::format("{}: {}", name, reason));
  if (news) save();
}

bool FleetAccounts::take_one(const std::string& name, const Registry::Entry& entry) {
  if (name.starts_with(kTenants)) {
    Result<TenantRecord> record = parse_tenant_record(name, entry.value);
    if (!record.ok()) return false;
    tenants_[record->tenant.name] = std::move(*record);
  } else {
    Result<ApiKey> key = parse_key_record(name, entry.value);
    if (!key.ok()) return false;
    const auto known = keys_.find(key->id);
    if (known != keys_.end() && known->second.revoked) key->revoked = true;
    keys_[key->id] = std::move(*key);
  }
  entries_[name] = entry;
  return true;
}

// --- Changes

Status FleetAccounts::change(std::string_view what, const std::function<Status(Registry::Transaction&, bool&)>& make) {
  LK_RETURN_IF_ERROR(decide(*registry_, what, make));
  if (const Status seen = look(); !seen.ok()) tell("registry_away", seen.message());  // the watch brings it
  return Status();
}

Result<std::pair<TenantRecord, int64_t>> FleetAccounts::find_tenant(const std::string& name) {
  const std::string key = tenant_key(name);
  LK_ASSIGN_OR_RETURN(const Registry::Entries entries, list_for_change(*registry_, key));
  const auto found = entries.find(key);
  if (found == entries.end()) return std::pair(TenantRecord{.tenant = {.name = name}, .removed = true}, int64_t{0});
  LK_ASSIGN_OR_RETURN(TenantRecord record, parse_tenant_record(key, found->second.value));
  return std::pair(std::move(record), found->second.revision);
}

Status FleetAccounts::create_tenant(const Tenant& tenant) {
  LK_RETURN_IF_ERROR(check_account(tenant));
  Tenant made = tenant;
  made.cache_salt = random_salt();  // also of one that comes back: it must not find the old one's cached prefixes
  return change("the tenant", [&](Registry::Transaction& change, bool&) -> Status {
    LK_ASSIGN_OR_RETURN(const auto found, find_tenant(tenant.name));
    if (!found.first.removed) return already_exists("there is a tenant \"{}\" already", tenant.name);
    change.unchanged = {{tenant_key(tenant.name), found.second}};
    change.puts = {{tenant_key(tenant.name), format_tenant({.tenant = made})}};
    return Status();
  });
}

Result<Tenant> FleetAccounts::change_tenant(const std::string& name, const std::function<Status(Tenant&)>& change_it,
                                            bool may_be_new) {
  LK_RETURN_IF_ERROR(check_name("tenant", name));
  Tenant changed;
  LK_RETURN_IF_ERROR(change("the tenant", [&](Registry::Transaction& change, bool&) -> Status {
    LK_ASSIGN_OR_RETURN(const auto found, find_tenant(name));
    if (found.first.removed && !may_be_new) return not_found("no tenant \"{}\"", name);
    changed = found.first.removed ? Tenant{.name = name, .cache_salt = random_salt()} : found.first.tenant;
    const uint64_t salt = changed.cache_salt;
    LK_RETURN_IF_ERROR(change_it(changed));
    changed.name = name;
    changed.cache_salt = salt;
    LK_RETURN_IF_ERROR(check_account(changed));
    change.unchanged = {{tenant_key(name), found.second}};
    change.puts = {{tenant_key(name), format_tenant({.tenant = changed})}};
    return Status();
  }));
  return changed;
}

Status FleetAccounts::remove_tenant(const std::string& name) {
  LK_RETURN_IF_ERROR(check_name("tenant", name));
  return change("the removal", [&](Registry::Transaction& change, bool& is_all) -> Status {
    LK_ASSIGN_OR_RETURN(auto found, find_tenant(name));
    if (found.first.removed) return not_found("no tenant \"{}\"", name);
    LK_ASSIGN_OR_RETURN(const Registry::Entries keys, list_for_change(*registry_, kKeys));
    const int64_t now = std::time(nullptr);
    for (const auto& [at, entry] : keys) {
      Result<ApiKey> key = parse_key_record(at, entry.value);
      if (!key.ok() || key->tenant != name || key->revoked) continue;
      if (is_usable(*key, now)) return failed_precondition("tenant \"{}\" has usable keys; revoke them first", name);
      key->revoked = true;
      change.unchanged.emplace_back(at, entry.revision);
      change.puts.emplace_back(at, format_key(*key));
    }
    if (change.puts.size() > kOperations) {
      is_all = false;
      change.unchanged.resize(kOperations);
      change.puts.resize(kOperations);
      return Status();
    }
    found.first.removed = true;
    change.unchanged.emplace_back(tenant_key(name), found.second);
    change.none_newer = {{std::string(kKeys), Registry::newest_of(keys)}};  // nobody made it a key meanwhile
    change.puts.emplace_back(tenant_key(name), format_tenant(found.first));
    return Status();
  });
}

Result<AccountStore::NewKey> FleetAccounts::create_key(const std::string& tenant, uint8_t scopes,
                                                       const std::string& note, int64_t expires) {
  LK_ASSIGN_OR_RETURN(NewKey made, make_key(tenant, scopes, note, expires));
  LK_RETURN_IF_ERROR(change("the key", [&](Registry::Transaction& change, bool&) -> Status {
    LK_ASSIGN_OR_RETURN(const auto found, find_tenant(tenant));
    if (found.first.removed) return not_found("no tenant \"{}\"", tenant);
    change.unchanged = {{tenant_key(tenant), found.second}, {key_key(made.key.id), 0}};
    change.puts = {{key_key(made.key.id), format_key(made.key)}};
    return Status();
  }));
  return made;
}

Status FleetAccounts::revoke_key(const std::string& id) {
  if (!is_valid_name(id)) return not_found("no key \"?\"");
  return change("the revocation", [&](Registry::Transaction& change, bool&) -> Status {
    const std::string at = key_key(id);
    LK_ASSIGN_OR_RETURN(const Registry::Entries entries, list_for_change(*registry_, at));
    const auto found = entries.find(at);
    if (found == entries.end()) return not_found("no key \"{}\"", id);
    LK_ASSIGN_OR_RETURN(ApiKey key, parse_key_record(at, found->second.value));
    key.revoked = true;
    change.unchanged = {{at, found->second.revision}};
    change.puts = {{at, format_key(key)}};
    return Status();
  });
}

// --- The file

Status FleetAccounts::load() {
  if (file_.empty()) return Status();
  const Result<std::string> text = read_file(file_, kMaxFile);
  if (text.status().code() == StatusCode::kNotFound) return Status();
  const Result<boost::json::object> known = text.ok() ? parse_json_object(*text, file_) : text.status();
  if (!known.ok()) return data_loss("{}: {}; move it away", file_, known.status().message());
  std::lock_guard lock(mutex_);
  for (const auto& [name, value] : *known)
    if (value.is_string()) (void)take_one(std::string(name), {.value = std::string(value.get_string())});
  for (auto& [name, entry] : entries_) entry.revision = 0;  // whatever the registry has is newer
  return Status();
}

void FleetAccounts::save() {
  std::lock_guard lock(mutex_);
  if (file_.empty()) return;
  unsaved_ = true;
  if (std::exchange(save_waits_, true) || !bench_) return;
  bench_->submit(0, [this](const std::stop_token&) {
    const Status status = guarded("the fleet's keys", [this] { write(); });
    if (!status.ok()) tell("keys_not_kept", status.message());
    return Workshop::Finish();
  });
}

void FleetAccounts::write() {
  boost::json::object known;
  {
    std::lock_guard lock(mutex_);
    save_waits_ = unsaved_ = false;
    for (const auto& [name, record] : tenants_) known[tenant_key(name)] = format_tenant(record);
    for (const auto& [id, key] : keys_) known[key_key(id)] = format_key(key);
  }
  const Status status = write_file_atomic(file_, json_text(known), FileAccess::kPrivate);
  if (status.ok()) return;
  tell("keys_not_kept", status.message());
  std::lock_guard lock(mutex_);
  unsaved_ = true;  // with the next change, or at the end
}

}  // namespace lk
