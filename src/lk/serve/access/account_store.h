// SPDX-License-Identifier: Apache-2.0
// AccountStore: where tenants and API keys are kept: a file of this machine (StateStore), or the registry of a fleet
// (serve/fleet/fleet_accounts.h). Of keys only the SHA-256 of their random secrets.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/access/tenants.h"

namespace lk {

class AccountStore {
 public:
  virtual ~AccountStore() = default;
  struct Accounts {
    std::vector<Tenant> tenants;  // by name
    std::vector<ApiKey> keys;     // by time
  };
  struct NewKey {
    ApiKey key;
    std::string text;  // the whole key, shown once
  };

  // Thread safe; what is written is durable when the call returns. What is read is checked like any input.
  // Whether anybody, also this process, changed something since the last call (or the opening).
  virtual Result<bool> changed() = 0;
  virtual Result<Accounts> accounts() = 0;  // of one moment
  Result<std::vector<Tenant>> tenants();
  Result<std::vector<ApiKey>> keys();

  // kAlreadyExists when there is one of that name.
  virtual Status create_tenant(const Tenant& tenant) = 0;
  // Read, changed and written as one, so that of two who change different things at the same time neither undoes the
  // other's. `change` must not come back here, and may be asked twice. kNotFound, unless it may be a new one.
  virtual Result<Tenant> change_tenant(const std::string& name, const std::function<Status(Tenant& tenant)>& change,
                                       bool may_be_new = false) = 0;
  // Refused while it has usable keys. The others are revoked and stay, so that a server whose keys are all gone does
  // not open.
  virtual Status remove_tenant(const std::string& name) = 0;
  virtual Result<NewKey> create_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                                    int64_t expires) = 0;
  virtual Status revoke_key(const std::string& id) = 0;

  // Of a store that is a file: how long a write waits for others.
  virtual void set_patience(std::chrono::milliseconds) {}
  // Of a store that is a file: called, on the writer's thread, with why a write failed for the file's sake; what it
  // returns is what the caller sees. Set it before other threads come.
  virtual void on_failed_write(std::function<Status(const Status& reason)>) {}
  // Of a store that is elsewhere: lines for the operator, on any thread.
  virtual void set_log(std::function<void(std::string_view what, std::string_view reason)>) {}
};

// What any store refuses.
Status check_account(const Tenant& tenant);
Status check_account(const ApiKey& key);
// A key with a random id and secret.
Result<AccountStore::NewKey> make_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                                      int64_t expires);
uint64_t random_salt();  // never 0
bool is_usable(const ApiKey& key, int64_t now_unix);

}  // namespace lk
