// SPDX-License-Identifier: Apache-2.0
// Tenants, API keys and limits. Keys are random; only their SHA-256 is stored, and compared in constant time.
// Once any key exists, usable or not, every request needs one; with none, the server is open (and binds to loopback
// only).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lk/base/status.h"

namespace lk {

enum class Scope : uint8_t { kInfer = 1, kAdapters = 2, kAdmin = 4, kMetrics = 8 };  // admin includes the others
inline constexpr uint8_t kAllScopes = 15;
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

// What each tenant has in flight and the tokens it has left this minute (token bucket of one minute's size, refilled
// continuously; charged with the reservation on entry, corrected with what was used at the end). A reservation bigger
// than the bucket is admitted when the bucket is full and leaves a debt, which later requests wait for. Thread safe.
class TenantLimiter {
 public:
  using Clock = std::chrono::steady_clock;
  struct Decision {
    bool admitted = true;
    std::string reason;              // "too many requests in flight: 8 of 8"
    double retry_after_seconds = 0;  // when it is worth trying again
  };
  // `requests` counts choices, not HTTP requests: n and lists of prompts are no way around the limit. More of them than
  // the limit enter together when nothing else of the tenant is in flight.
  Decision admit(const Tenant& tenant, int64_t reserved_tokens, Clock::time_point now, int64_t requests = 1);
  void finish(const Tenant& tenant, int64_t reserved_tokens, int64_t used_tokens, Clock::time_point now,
              int64_t requests = 1);
  // Forgets tenants that `keep` does not want and that have nothing in flight.
  void retain(const std::function<bool(const std::string& tenant)>& keep);
  struct Usage {
    int64_t in_flight = 0, requests = 0, refused = 0, used_tokens = 0;
  };
  std::map<std::string, Usage> usage() const;

 private:
  struct Bucket {
    Usage usage;
    double tokens = 0;
    Clock::time_point refilled;
    bool started = false;
  };
  static void refill(Bucket& bucket, double size, Clock::time_point now);
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Bucket> buckets_;  // by tenant name
};

}  // namespace lk
