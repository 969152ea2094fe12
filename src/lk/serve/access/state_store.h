// SPDX-License-Identifier: Apache-2.0
// StateStore: what survives a restart (SQLite, WAL): tenants, API keys, loaded adapters, aliases. The server and
// `lorikeet keys` may have it open at the same time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/serve/access/account_store.h"

namespace lk {

struct StoredAdapter {
  std::string name;
  int64_t version = 0;
  std::string path;
  std::string digest;
  bool pinned = false;
  bool is_default = true;  // what the bare name means
  std::string tenant;      // whose key loaded it; "" = nobody's
};

class StateStore final : public AccountStore {
 public:
  // Creates the file (mode 0600) and its directory; refuses a file of a newer schema, of another program, or a damaged
  // one, naming it.
  static Result<std::unique_ptr<StateStore>> open(const std::string& path);
  ~StateStore() override;

  // Thread safe; each call is one transaction, durable when it returns. What is read is checked like any input: a file
  // somebody tampered with gives kDataLoss, not strange names. Reads have a connection of their own and do not wait for
  // writes; a write waits for others, in this process and elsewhere, no longer than the patience (5 s at first).
  void set_patience(std::chrono::milliseconds patience) override;
  // Called, on the writer's thread, with why a write failed for the file's sake (locked, full, read-only, damaged,
  // gone); what it returns is what the caller sees. Set it before other threads come.
  void on_failed_write(std::function<Status(const Status& reason)> callback) override;
  // Whether anybody, also this process, committed something since the last call (or the opening). kDataLoss when the
  // file was removed or replaced: what is written would be lost.
  Result<bool> changed() override;

  // --- AccountStore
  Status put_tenant(const Tenant& tenant);  // insert or update; keeps the salt, makes one for a new tenant
  Status create_tenant(const Tenant& tenant) override;
  Result<Tenant> change_tenant(const std::string& name, const std::function<Status(Tenant& tenant)>& change,
                               bool may_be_new = false) override;
  Status remove_tenant(const std::string& name) override;
  Result<NewKey> create_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                            int64_t expires) override;
  Status revoke_key(const std::string& id) override;
  Result<Accounts> accounts() override;
  Result<KeyRing> load_key_ring();

  // What is said of adapters from now on is about this base model (base_digest.h): adapters and aliases of others are
  // neither seen nor changed. What was stored before bases were told apart becomes this one's. Before other threads use
  // this.
  Status use_base(const std::string& digest);
  // Stored adapters that belong to other bases.
  Result<int64_t> num_of_other_bases();
  Result<std::vector<StoredAdapter>> adapters();
  // By (name, version); is_default clears it from the other versions. kAlreadyExists for a version that was removed or
  // skipped. The versions it retires go in the same transaction.
  Status put_adapter(const StoredAdapter& adapter, const std::vector<int64_t>& retired = {});
  Status remove_adapter(const std::string& name,
                        int64_t version);  // the default's removal makes no other version the default
  // Versions and aliases that go together; what is not there is no failure.
  Status remove(const std::vector<std::pair<std::string, int64_t>>& versions, const std::vector<std::string>& aliases);
  // Highest version ever used for the name, 0 for none: versions are never reused, also after removal. With the digest
  // of its content, "" when that is not known or belongs to another base.
  struct LastVersion {
    int64_t version = 0;
    std::string digest;
  };
  Result<LastVersion> last_version(const std::string& name);
  // The version was given to this content, by a load that does not survive a restart itself.
  Status put_version(const std::string& name, int64_t version, const std::string& digest);
  struct Alias {
    std::string alias, name;
    int64_t version = 0;  // 0 = the name's default
  };
  Result<std::vector<Alias>> aliases();
  Status put_alias(const Alias& alias);
  // A changed adapter and an alias, both or neither.
  Status put(const std::optional<StoredAdapter>& adapter, const std::optional<Alias>& alias);
  Status remove_alias(const std::string& alias);

 private:
  StateStore() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lk
