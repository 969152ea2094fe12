// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/account_store.h"

#include <ctime>

#include "lk/base/names.h"
#include "lk/base/plain_text.h"
#include "lk/base/sha256.h"
#include "lk/serve/access/secrets.h"

namespace lk {
namespace {

constexpr size_t kIdLength = 12;
constexpr size_t kSecretLength = 43;  // 256 bits
constexpr size_t kMaxNote = 256, kMaxPatterns = 1024;
constexpr int64_t kMaxLimit = int64_t{1} << 50;  // of every count and time

bool is_hex_digest(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}
bool in_range(int64_t value) { return value >= 0 && value <= kMaxLimit; }

}  // namespace

Result<std::vector<Tenant>> AccountStore::tenants() {
  LK_ASSIGN_OR_RETURN(Accounts now, accounts());
  return std::move(now.tenants);
}

Result<std::vector<ApiKey>> AccountStore::keys() {
  LK_ASSIGN_OR_RETURN(Accounts now, accounts());
  return std::move(now.keys);
}

Status check_account(const Tenant& tenant) {
  LK_RETURN_IF_ERROR(check_name("tenant", tenant.name));
  if (!(tenant.weight >= 1e-3 && tenant.weight <= 1e6))
    return invalid_argument("tenant {}: weight {} is not in [0.001, 1000000]", tenant.name, tenant.weight);
  if (!in_range(tenant.max_in_flight))
    return invalid_argument("tenant {}: {} requests in flight is no limit; 0 = unlimited", tenant.name,
                            tenant.max_in_flight);
  if (!in_range(tenant.tokens_per_minute))
    return invalid_argument("tenant {}: {} tokens per minute is no limit; 0 = unlimited", tenant.name,
                            tenant.tokens_per_minute);
  if (!in_range(tenant.max_adapters) || !in_range(tenant.max_versions) || !in_range(tenant.max_sums))
    return invalid_argument("tenant {}: {} adapters, {} versions and {} sums are no limits; 0 = unlimited", tenant.name,
                            tenant.max_adapters, tenant.max_versions, tenant.max_sums);
  if (tenant.adapters.size() > kMaxPatterns)
    return invalid_argument("tenant {}: more than {} adapter patterns", tenant.name, kMaxPatterns);
  for (const std::string& pattern : tenant.adapters)
    if (!is_valid_glob(pattern))
      return invalid_argument("tenant {}: \"{}\" is not an adapter pattern; use names with * and ?", tenant.name,
                              is_plain_text(pattern, 128) ? pattern : "?");
  return Status();
}

Status check_account(const ApiKey& key) {
  if (key.id.size() != kIdLength || !is_valid_name(key.id) || key.id.find_first_of(".-_") != std::string::npos)
    return invalid_argument("a key has an id of another form");
  LK_RETURN_IF_ERROR(check_name("tenant", key.tenant));
  if (!is_hex_digest(key.secret_sha256)) return invalid_argument("key {}: the hash is not SHA-256", key.id);
  if (key.scopes == 0 || key.scopes > kAllScopes)
    return invalid_argument("key {}: scopes {} are none", key.id, key.scopes);
  if (!is_plain_text(key.note, kMaxNote))
    return invalid_argument("key {}: the note is not one line of at most {} bytes", key.id, kMaxNote);
  if (!in_range(key.created) || !in_range(key.expires))
    return invalid_argument("key {}: a time is out of range", key.id);
  return Status();
}

Result<AccountStore::NewKey> make_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                                      int64_t expires) {
  const std::string secret = random_base62(kSecretLength);
  Sha256 hash;
  hash.update(secret.data(), secret.size());
  AccountStore::NewKey made{.key = {.id = random_base62(kIdLength),
                                    .secret_sha256 = to_hex(hash.finish()),
                                    .tenant = tenant,
                                    .scopes = scopes,
                                    .note = note,
                                    .created = std::time(nullptr),
                                    .expires = expires},
                            .text = {}};
  LK_RETURN_IF_ERROR(check_account(made.key));
  if (expires != 0 && expires <= made.key.created) return invalid_argument("the key would have expired already");
  made.text = fmt::format("lk-{}-{}", made.key.id, secret);
  return made;
}

uint64_t random_salt() {
  uint64_t salt = 0;
  while (salt == 0) fill_random({reinterpret_cast<uint8_t*>(&salt), sizeof salt});
  return salt;
}

bool is_usable(const ApiKey& key, int64_t now_unix) {
  return !key.revoked && (key.expires == 0 || key.expires > now_unix);
}

}  // namespace lk
