// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/access_control.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "lk/base/file.h"

namespace lk {
namespace {

constexpr int64_t kMaxKeyFileBytes = 4096;

Result<PlainKey> read_key_file(const std::string& path) {
  LK_ASSIGN_OR_RETURN(std::string text, read_file(path, kMaxKeyFileBytes));
  text.resize(std::min(text.find('\n'), text.size()));
  if (text.ends_with('\r')) text.pop_back();
  Result<PlainKey> key = make_plain_key("file", text);
  return key.ok() ? std::move(key) : key.status().with_context(fmt::format("--api-key-file {}", path));
}

void compare_keys(const std::vector<ApiKey>& before, const std::vector<ApiKey>& now,
                  std::vector<AccessChange>& changes) {
  std::map<std::string_view, const ApiKey*> known;
  for (const ApiKey& key : before) known[key.id] = &key;
  for (const ApiKey& key : now) {
    const auto it = known.find(key.id);
    if (it == known.end()) {
      changes.push_back({"key_created", key.id});
      continue;
    }
    if (key.revoked && !it->second->revoked) changes.push_back({"key_revoked", key.id});
    known.erase(it);
  }
  for (const auto& [id, key] : known) changes.push_back({"key_lost", std::string(id)});
}

void compare_tenants(const std::vector<Tenant>& before, const std::vector<Tenant>& now,
                     std::vector<AccessChange>& changes) {
  std::map<std::string_view, const Tenant*> known;
  for (const Tenant& tenant : before) known[tenant.name] = &tenant;
  for (const Tenant& tenant : now) {
    const auto it = known.find(tenant.name);
    if (it == known.end()) {
      changes.push_back({"tenant_created", tenant.name});
      continue;
    }
    if (!(tenant == *it->second)) changes.push_back({"tenant_changed", tenant.name});
    known.erase(it);
  }
  for (const auto& [name, tenant] : known) changes.push_back({"tenant_removed", std::string(name)});
}

}  // namespace

Result<std::unique_ptr<AccessControl>> AccessControl::create(const AccessOptions& options, AccountStore* store) {
  std::unique_ptr<AccessControl> self(new AccessControl(options, store));
  LK_RETURN_IF_ERROR(self->reload().status());
  return self;
}

std::shared_ptr<const KeyRing> AccessControl::ring() const {
  const std::lock_guard lock(mutex_);
  return ring_;
}

Result<std::vector<AccessChange>> AccessControl::reload() {
  AccountStore::Accounts accounts;
  if (store_ != nullptr) {
    LK_ASSIGN_OR_RETURN(accounts, store_->accounts());
  }
  std::vector<PlainKey> plain;
  if (!options_.key_text.empty()) {
    LK_ASSIGN_OR_RETURN(PlainKey key, make_plain_key("environment", options_.key_text));
    plain.push_back(std::move(key));
  }
  std::string stamp;
  if (!options_.key_file.empty()) {
    stamp = key_file_stamp();  // before: what comes between is read at the next look
    LK_ASSIGN_OR_RETURN(PlainKey key, read_key_file(options_.key_file));
    plain.push_back(std::move(key));
  }
  auto ring = std::make_shared<KeyRing>(accounts.tenants, accounts.keys, plain, options_.require_keys);
  std::vector<AccessChange> changes;
  if (const auto before = this->ring()) {
    if (ring->open() && !before->open())
      return data_loss("the API keys are gone from where they are kept; those that were known hold on");
    compare_keys(accounts_.keys, accounts.keys, changes);
    compare_tenants(accounts_.tenants, accounts.tenants, changes);
    if (!options_.key_file.empty() && plain.back().sha256 != plain_.back().sha256)
      changes.push_back({"key_changed", "file"});
  }
  stale_ = false;
  accounts_ = std::move(accounts);
  plain_ = std::move(plain);
  key_file_stamp_ = std::move(stamp);
  const std::lock_guard lock(mutex_);
  ring_ = std::move(ring);
  return changes;
}

Result<std::vector<AccessChange>> AccessControl::refresh() {
  if (store_ != nullptr) {
    LK_ASSIGN_OR_RETURN(const bool changed, store_->changed());
    stale_ |= changed;
  }
  if (!options_.key_file.empty() && key_file_stamp() != key_file_stamp_) stale_ = true;
  if (!stale_) return std::vector<AccessChange>();
  return reload();
}

// Follows links: a mounted secret is replaced by pointing its link elsewhere.
std::string AccessControl::key_file_stamp() const {
  struct stat info {};
  if (::stat(options_.key_file.c_str(), &info) != 0) return "missing";
  return fmt::format("{}:{}:{}:{}.{}", info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec,
                     info.st_mtim.tv_nsec);
}

}  // namespace lk
