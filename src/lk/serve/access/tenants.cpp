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
constexpr ScopeName kScopeNames[] = {{Scope::kInfer, "infer"},       {Scope::kAdapters, "adapters"},
                                     {Scope::kMetrics, "metrics"},   {Scope::kFleet, "fleet"},
                                     {Scope::kFederate, "federate"}, {Scope::kAdmin, "admin"}};

constexpr std::string_view kKeyPrefix = "lk-";
constexpr size_t kMaxKeyText = 256;  // ours have 59; nothing longer is worth hashing
constexpr size_t kMinPlainKey = 16, kMaxPlainKey = 200;

std::string digest_of(std::string_view text) {
  Sha256 hash;
  hash.update(text.data(), text.size());
  return to_hex(hash.finish());
}

// `digest` is a hash, of 64 characters.
bool equal_digests(std::string_view digest, std::string_view expected) {
  return expected.size() == digest.size() && CRYPTO_memcmp(digest.data(), expected.data(), digest.size()) == 0;
}

struct KeyText {
  std::string_view id, secret;
};

// The key of "Bearer KEY"; empty when the header has another form.
std::string_view bearer_of(std::string_view header) {
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
  return trim(header);
}

// "lk-<id>-<secret>"; both parts empty when it has another form.
KeyText split_key(std::string_view key) {
  if (!key.starts_with(kKeyPrefix)) return {};
  key.remove_prefix(kKeyPrefix.size());
  const size_t dash = key.find('-');
  if (dash == std::string_view::npos) return {};
  return {key.substr(0, dash), key.substr(dash + 1)};
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
      return invalid_argument("\"{}\" is not a scope; give one or more of {}, separated by commas", word.substr(0, 64),
                              scope_names());
    scopes |= static_cast<uint8_t>(known->scope);
    begin = comma + 1;
  }
  return scopes;
}

std::string scope_names() {
  std::string names;
  for (const ScopeName& s : kScopeNames) names += fmt::format("{}{}", names.empty() ? "" : ", ", s.name);
  return names;
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

Result<PlainKey> make_plain_key(std::string_view source, std::string_view text) {
  if (text.size() < kMinPlainKey || text.size() > kMaxPlainKey ||
      std::ranges::any_of(text, [](char c) { return c <= ' ' || c > '~'; }))
    return invalid_argument(
        "the API key of the {} must have {} to {} printable characters without spaces; `openssl rand -hex 32` makes "
        "one",
        source, kMinPlainKey, kMaxPlainKey);
  if (text.starts_with(kKeyPrefix))
    return invalid_argument(
        "the API key of the {} has the form of one that `lorikeet keys create` makes: those work without it, from the "
        "state file",
        source);
  return PlainKey{.source = std::string(source), .sha256 = digest_of(text)};
}

KeyRing::KeyRing(std::vector<Tenant> tenants, std::vector<ApiKey> keys, std::vector<PlainKey> plain, bool required)
    : plain_(std::move(plain)), closed_(required || !keys.empty() || !plain_.empty()) {
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

std::shared_ptr<const Tenant> KeyRing::default_tenant() const {
  static const auto kUnlimited = std::make_shared<const Tenant>(Tenant{.name = "default"});
  const auto it = tenants_.find("default");
  return it == tenants_.end() ? kUnlimited : it->second;
}

bool KeyRing::has_usable_key(int64_t now_unix) const {
  return !plain_.empty() || std::ranges::any_of(keys_, [&](const auto& entry) {
    const ApiKey& key = entry.second;
    return !key.revoked && (key.expires == 0 || now_unix < key.expires) && tenants_.contains(key.tenant);
  });
}

Result<Principal> KeyRing::authenticate(std::string_view authorization, int64_t now_unix) const {
  if (open()) {
    return Principal{.tenant = default_tenant(), .scopes = kAllScopes, .key_id = ""};
  }
  const std::string_view bearer = bearer_of(authorization);
  const KeyText text = split_key(bearer);
  const std::string digest = digest_of(text.secret);
  static const std::string kDummyHash(digest.size(), '0');  // an unknown id is compared too, with what nothing matches
  const auto found = keys_.find(std::string(text.id));
  const bool known = found != keys_.end();
  const bool equal = equal_digests(digest, known ? found->second.secret_sha256 : kDummyHash);
  if (!bearer.empty() && text.id.empty() && !plain_.empty()) {
    const std::string whole = digest_of(bearer);
    for (const PlainKey& plain : plain_)
      if (equal_digests(whole, plain.sha256))
        return Principal{
            .tenant = default_tenant(), .scopes = static_cast<uint8_t>(Scope::kInfer), .key_id = plain.source};
  }
  const Status refusal = unauthenticated("a valid API key is needed: send \"Authorization: Bearer lk-...\"");
  if (!known || !equal || text.secret.empty()) return refusal;
  const ApiKey& key = found->second;
  const auto tenant = tenants_.find(key.tenant);
  if (key.revoked || (key.expires != 0 && now_unix >= key.expires) || tenant == tenants_.end()) return refusal;
  return Principal{.tenant = tenant->second, .scopes = key.scopes, .key_id = key.id};
}

}  // namespace lk
