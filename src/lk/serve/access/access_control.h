// SPDX-License-Identifier: Apache-2.0
// AccessControl: the keys and tenants that hold now. They come from the state file, or a fleet's registry, and from
// plain keys (a file, the environment); what changes there, also by another process, holds from the next refresh() on.
//
// Thread safety: ring() from any thread, the rest from one at a time that may wait for files.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lk/serve/access/account_store.h"

namespace lk {

struct AccessOptions {
  std::string key_file;       // --api-key-file: a plain key in its first line
  std::string key_text;       // $LORIKEET_API_KEY
  bool require_keys = false;  // closed even when there is no key at all
};

// One difference between what held and what holds now.
struct AccessChange {
  const char* action;  // "key_created", "key_revoked", "tenant_changed", ...
  std::string target;  // the key's id or the tenant's name
};

class AccessControl {
 public:
  // `store` may be null. Reads everything once.
  static Result<std::unique_ptr<AccessControl>> create(const AccessOptions& options, AccountStore* store);

  std::shared_ptr<const KeyRing> ring() const;
  // Reads everything again. On failure what held stays; so it does when keys are gone altogether, which nobody can have
  // asked for: a server that was closed does not open.
  Result<std::vector<AccessChange>> reload();
  // The same, if anything was written since the last time.
  Result<std::vector<AccessChange>> refresh();

 private:
  AccessControl(const AccessOptions& options, AccountStore* store) : options_(options), store_(store) {}
  std::string key_file_stamp() const;

  const AccessOptions options_;
  AccountStore* const store_;
  AccountStore::Accounts accounts_;
  std::vector<PlainKey> plain_;
  std::string key_file_stamp_;  // of what was read
  bool stale_ = false;          // what was written is still to be read
  mutable std::mutex mutex_;
  std::shared_ptr<const KeyRing> ring_;  // guarded by mutex_
};

}  // namespace lk
