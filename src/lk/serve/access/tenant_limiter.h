// SPDX-License-Identifier: Apache-2.0
// TenantLimiter: what a tenant may have in flight: requests, tokens a minute, bytes that are held for them. A request
// takes its place when its head is known, before anything else is done for it, and keeps it until its answer is
// written.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "lk/base/shared_bound.h"
#include "lk/serve/access/tenants.h"

namespace lk {

// Tokens left this minute: a token bucket of one minute's size, refilled continuously; charged with a reservation on
// entry, corrected with what was used at the end. A reservation bigger than the bucket is admitted when the bucket is
// full and leaves a debt, which later requests wait for. Thread safe.
class TenantLimiter {
 public:
  using Clock = std::chrono::steady_clock;
  struct Decision {
    bool admitted = true;
    bool never = false;              // asking again is no use: it is larger than the limit
    std::string reason;              // "too many requests in flight: 8 of 8"
    double retry_after_seconds = 0;  // when it is worth trying again
  };
  // One request's part of its tenant's limits; what it holds is given back with it. Of one thread at a time.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept { *this = std::move(other); }
    Place& operator=(Place&& other) noexcept;
    ~Place() { finish(0); }
    explicit operator bool() const { return limiter_ != nullptr; }
    bool was_let_in() const { return let_in_; }  // by enter_anyway()

    // So many bytes are held for it now: its body as received so far, later what its answer will be made of. False when
    // those of its tenant, or of all, would be too many; nothing changes then.
    bool hold(int64_t bytes);
    // It wants `choices` answers and is charged `tokens` for all of them. Choices count as requests do: n and lists of
    // prompts are no way around the limit.
    Decision admit(int64_t tokens, int64_t choices, Clock::time_point now = Clock::now());
    // Gives back everything; `used_tokens` were used.
    void finish(int64_t used_tokens, Clock::time_point now = Clock::now());

   private:
    friend class TenantLimiter;
    TenantLimiter* limiter_ = nullptr;
    std::shared_ptr<const Tenant> tenant_;
    std::string account_;
    int64_t requests_ = 0, tokens_ = 0, held_bytes_ = 0;
    bool let_in_ = false;
  };

  // `max_held_bytes`: of all requests at a time, shared by weight (SharedBound).
  explicit TenantLimiter(int64_t max_held_bytes = int64_t{64} << 20) : held_(max_held_bytes) {}

  // The head of a request is known: it takes one of the requests in flight, and a token when it will need any. What is
  // held for it is held for `account`, or the tenant when that is empty.
  Decision enter(std::shared_ptr<const Tenant> tenant, Place& place, Clock::time_point now = Clock::now(),
                 int64_t tokens = 1, std::string account = {});
  // For a request that was let in elsewhere and goes on here: counted with the others, and refused nothing.
  void enter_anyway(std::shared_ptr<const Tenant> tenant, Place& place, std::string account = {});
  // Of every tenant's limits this process has part number `rank` (from 0) of `count`, and others the rest: the parts of
  // a limit that is not below `count` add up to it, of a smaller one each has 1. A single request that is within the
  // whole limit and larger than the part enters when nothing else of its tenant is in flight here.
  void set_share(int64_t rank, int64_t count);
  // Forgets tenants that `keep` does not want and that have nothing in flight.
  void retain(const std::function<bool(const std::string& tenant)>& keep);
  struct Usage {
    int64_t in_flight = 0, requests = 0, refused = 0, used_tokens = 0;
  };
  std::map<std::string, Usage> usage() const;
  int64_t held_bytes() const;  // of all requests, now
  int64_t max_held_bytes() const { return held_.capacity(); }

 private:
  struct Bucket {
    Usage usage;
    double tokens = 0;
    Clock::time_point refilled;
    bool started = false;
  };
  int64_t part_of(int64_t limit) const;  // Requires: the lock
  static void refill(Bucket& bucket, double size, Clock::time_point now);
  Decision charge(const Tenant& tenant, int64_t tokens, int64_t requests, Clock::time_point now, int64_t held_requests,
                  int64_t held_tokens);

  mutable std::mutex mutex_;
  std::unordered_map<std::string, Bucket> buckets_;  // by tenant name
  int64_t rank_ = 0, count_ = 1;                     // see set_share()
  SharedBound<std::string> held_;                    // bytes, by account
};

}  // namespace lk
