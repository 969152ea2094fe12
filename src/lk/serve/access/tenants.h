// SPDX-License-Identifier: Apache-2.0
// Tenants and API keys. Keys are random; only their SHA-256 is stored, and compared in constant time.
// Once any key exists, usable or not, every request needs one; with none, the server is open (and binds to loopback
// only).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// Admin includes the others. Fleet is for routers: it says how an answer began that goes on here.
// Federate is for clients of federated runs.
enum class Scope : uint8_t { kInfer = 1, kAdapters = 2, kAdmin = 4, kMetrics = 8, kFleet = 16, kFederate = 32 };
inline constexpr uint8_t kAllScopes = 63;
// "infer, adapters, ...": for messages.
std::string scope_names();
Result<uint8_t> parse_scopes(std::string_view text);  // "infer,adapters"
std::string format_scopes(uint8_t scopes);

struct Tenant {
  std::string name;
  double weight = 1;                  // share of service (VTC), > 0
  int64_t max_in_flight = 0;          // requests; 0 = no limit
  int64_t tokens_per_minute = 0;      // prompt + output; 0 = no limit
  std::vector<std::string> adapters;  // glob patterns of names it may use, "base" for the base model; empty = all
  // Of what its keys loaded and ask for; 0 = no limit. More is refused, a sum too many takes the place of its oldest.
  int64_t max_adapters = 0, max_versions = 0, max_sums = 0;
  uint64_t cache_salt = 0;  // separates its prefix cache; random, made once, never 0 for a stored tenant

  bool may_use(std::string_view adapter) const;
  bool operator==(const Tenant&) const = default;
};

struct ApiKey {
  std::string id;             // public part, 12 characters: "lk-<id>-<secret>"
  std::string secret_sha256;  // hex
  std::string tenant;
  uint8_t scopes = 0;
  std::string note;
  int64_t created = 0, expires = 0;  // Unix seconds; 0 = never
  bool revoked = false;

  const char* state(int64_t now_unix) const {  // "usable", "revoked", "expired"
    return revoked ? "revoked" : expires != 0 && expires <= now_unix ? "expired" : "usable";
  }
};

// A key that the operator chose, from a file or the environment: tenant "default", scope infer.
struct PlainKey {
  std::string source;  // stands where others have their id: "file", "environment"
  std::string sha256;  // hex
};
// kInvalidArgument for what is no key: 16 to 200 printable characters without spaces, not of the form lk-....
Result<PlainKey> make_plain_key(std::string_view source, std::string_view text);

struct Principal {
  std::shared_ptr<const Tenant> tenant;  // never null
  uint8_t scopes = 0;
  std::string key_id;  // "" without keys
  bool has(Scope scope) const {
    return (scopes & (static_cast<uint8_t>(scope) | static_cast<uint8_t>(Scope::kAdmin))) != 0;
  }
};

// Immutable; a reload makes a new one and swaps the pointer.
class KeyRing {
 public:
  KeyRing() = default;  // open: no keys
  // `required`: closed even without any key.
  KeyRing(std::vector<Tenant> tenants, std::vector<ApiKey> keys, std::vector<PlainKey> plain = {},
          bool required = false);
  bool open() const { return !closed_; }
  bool has_usable_key(int64_t now_unix) const;
  // Without keys: everyone, with all scopes, as tenant "default" (its stored limits hold, if there are any).
  // `authorization` is the header's value ("Bearer lk-..."). kUnauthenticated without saying which part was wrong. An
  // unknown id takes as long as a wrong secret.
  bool knows(std::string_view tenant) const {
    return tenant == "default" || tenant.empty() || tenants_.contains(tenant);
  }
  Result<Principal> authenticate(std::string_view authorization, int64_t now_unix) const;
  // Of the open server and of plain keys: "default", with its stored limits, if there are any.
  std::shared_ptr<const Tenant> default_tenant() const;
  bool knows_limits() const { return tenants_.contains("default"); }

 private:
  std::map<std::string, std::shared_ptr<const Tenant>, std::less<>> tenants_;
  std::unordered_map<std::string, ApiKey> keys_;  // by id
  std::vector<PlainKey> plain_;
  bool closed_ = false;
};

}  // namespace lk
