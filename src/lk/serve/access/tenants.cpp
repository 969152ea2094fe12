// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/tenants.h"

#include <openssl/crypto.h>

#include <algorithm>

#include "lk/base/names.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {

struct ScopeName {
  Scope scope;
  std::string_view name;
};
constexpr ScopeName kScopeNames[] = {
    {Scope::kInfer, "infer"}, {Scope::kAdapters, "adapters"}, {Scope::kAdmin, "admin"}};
constexpr uint8_t kAllScopes = 7;

constexpr std::string_view kKeyPrefix = "lk-";
constexpr size_t kMaxKeyText = 256;  // ours have 59; nothing longer is worth hashing

struct KeyText {
  std::string_view id, secret;
};

// "Bearer lk-<id>-<secret>"; both parts empty when it has another form.
KeyText split_authorization(std::string_view header) {
  constexpr std::string_view kScheme = "bearer";
  if (header.size() <= kScheme.size() || header.size() > kMaxKeyText) return {};
  for (size_t i = 0; i < kScheme.size(); ++i)
    if ((header[i] | 0x20) != kScheme[i]) return {};
  header.remove_prefix(kScheme.size());
  if (header[0] != ' ') return {};
  const auto trim = [](std::string_view text) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
  };
  header = trim(header);
  if (!header.starts_with(kKeyPrefix)) return {};
  header.remove_prefix(kKeyPrefix.size());
  const size_t dash = header.find('-');
  if (dash == std::string_view::npos) return {};
  return {header.substr(0, dash), header.substr(dash + 1)};
}

}  // namespace

Result<uint8_t> parse_scopes(std::string_view text) {
  uint8_t scopes = 0;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    std::string_view word = text.substr(begin, comma - begin);
    while (!word.empty() && word.front() == ' ') word.remove_prefix(1);
    while (!word.empty() && word.back() == ' ') word.remove_suffix(1);
    const auto* known = std::find_if(std::begin(kScopeNames), std::end(kScopeNames),
                                     [&](const ScopeName& s) { return s.name == word; });
    if (known == std::end(kScopeNames))
      return invalid_argument("\"{}\" is not a scope; give one or more of infer, adapters, admin, separated by commas",
                              word.substr(0, 64));
    scopes |= static_cast<uint8_t>(known->scope);
    begin = comma + 1;
  }
  return scopes;
}

std::string format_scopes(uint8_t scopes) {
  std::string text;
  for (const ScopeName& s : kScopeNames) {
    if ((scopes & static_cast<uint8_t>(s.scope)) == 0) continue;
    if (!text.empty()) text += ',';
    text += s.name;
  }
  return text;
}

bool Tenant::may_use(std::string_view adapter) const {
  if (adapters.empty()) return true;
  if (adapter.empty()) adapter = "base";
  return std::any_of(adapters.begin(), adapters.end(),
                     [&](const std::string& pattern) { return glob_match(pattern, adapter); });
}

KeyRing::KeyRing(std::vector<Tenant> tenants, std::vector<ApiKey> keys) {
  for (Tenant& tenant : tenants) {
    const std::string name = tenant.name;
    tenants_[name] = std::make_shared<const Tenant>(std::move(tenant));
  }
  // Useless keys (revoked, expired, of no tenant) stay in: they must not make the ring an open one.
  for (ApiKey& key : keys) {
    const std::string id = key.id;
    keys_[id] = std::move(key);
  }
}

Result<Principal> KeyRing::authenticate(std::string_view authorization, int64_t now_unix) const {
  if (open()) {
    static const auto kAnyone = std::make_shared<const Tenant>(Tenant{.name = "default"});
    const auto it = tenants_.find("default");  // stored limits of "default" hold for the open server
    return Principal{.tenant = it == tenants_.end() ? kAnyone : it->second, .scopes = kAllScopes, .key_id = ""};
  }
  const KeyText text = split_authorization(authorization);
  Sha256 hash;
  hash.update(text.secret.data(), text.secret.size());
  const std::string digest = to_hex(hash.finish());
  static const std::string kDummyHash(digest.size(), '0');  // an unknown id is compared too, with what nothing matches
  const auto found = keys_.find(std::string(text.id));
  const bool known = found != keys_.end() && found->second.secret_sha256.size() == digest.size();
  const std::string& expected = known ? found->second.secret_sha256 : kDummyHash;
  const bool equal = CRYPTO_memcmp(digest.data(), expected.data(), digest.size()) == 0;
  const Status refusal = unauthenticated("a valid API key is needed: send \"Authorization: Bearer lk-...\"");
  if (!known || !equal || text.secret.empty()) return refusal;
  const ApiKey& key = found->second;
  const auto tenant = tenants_.find(key.tenant);
  if (key.revoked || (key.expires != 0 && now_unix >= key.expires) || tenant == tenants_.end()) return refusal;
  return Principal{.tenant = tenant->second, .scopes = key.scopes, .key_id = key.id};
}

}  // namespace lk
