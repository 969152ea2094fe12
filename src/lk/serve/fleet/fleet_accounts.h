// SPDX-License-Identifier: Apache-2.0
// FleetAccounts: tenants and keys in a fleet's registry: a key that is made anywhere works everywhere, and one that is
// revoked works nowhere, a moment later. What was seen last holds while the registry is away, also after a restart;
// changes are refused then.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "lk/base/workshop.h"
#include "lk/registry/registry.h"
#include "lk/serve/access/account_store.h"
#include "lk/serve/fleet/account_record.h"

namespace lk {

class FleetAccounts final : public AccountStore {
 public:
  // `file`: where what was seen is kept for the next start, mode 0600; "" = nowhere. Asks the registry once, for a few
  // seconds at most, and goes by the file if that does not answer. kDataLoss: the file is none.
  static Result<std::unique_ptr<FleetAccounts>> open(std::unique_ptr<Registry> registry, const std::string& file);
  ~FleetAccounts() override;

  // What is lost from the registry stays here, and a key that was seen revoked once stays revoked: a registry that is
  // restored from an old copy opens nothing.
  Result<bool> changed() override;
  Result<Accounts> accounts() override;
  Status create_tenant(const Tenant& tenant) override;
  Result<Tenant> change_tenant(const std::string& name, const std::function<Status(Tenant& tenant)>& change,
                               bool may_be_new = false) override;
  Status remove_tenant(const std::string& name) override;
  Result<NewKey> create_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                            int64_t expires) override;
  Status revoke_key(const std::string& id) override;
  void set_log(std::function<void(std::string_view what, std::string_view reason)> log) override;

 private:
  FleetAccounts(std::unique_ptr<Registry> registry, std::string file)
      : registry_(std::move(registry)), file_(std::move(file)) {}
  Status load();
  // `is_latest`: of a watch. Else only what is newer than what is known.
  void take(const Registry::Entries& entries, bool is_latest);
  bool take_one(const std::string& name, const Registry::Entry& entry);  // mutex_ is held
  Status look();
  // Changes, and makes what is there then known here before it returns.
  Status change(std::string_view what, const std::function<Status(Registry::Transaction&, bool&)>& make);
  Result<std::pair<TenantRecord, int64_t>> find_tenant(const std::string& name);  // revision 0: there is none
  void save();
  void write();
  void tell(std::string_view what, std::string_view reason);

  const std::unique_ptr<Registry> registry_;
  const std::string file_;
  std::mutex mutex_;
  Registry::Entries entries_;                    // as last seen and readable; guarded by mutex_, like all below
  std::map<std::string, TenantRecord> tenants_;  // by name
  std::map<std::string, ApiKey> keys_;           // by id
  std::map<std::string, int64_t> told_;          // revisions of what was ignored, by name
  bool changed_ = false, unsaved_ = false, save_waits_ = false;
  std::function<void(std::string_view, std::string_view)> log_;
  std::vector<std::pair<std::string, std::string>> untold_;  // until there is a log
  std::unique_ptr<Workshop> bench_;
};

}  // namespace lk
