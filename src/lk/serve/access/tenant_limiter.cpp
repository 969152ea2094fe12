// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "lk/serve/access/tenants.h"

namespace lk {

// Brings the bucket to `now`. A clock that stands still or a limit that shrank takes nothing below what the new size
// allows.
void TenantLimiter::refill(Bucket& bucket, double size, Clock::time_point now) {
  if (!bucket.started) {
    bucket.started = true;
    bucket.tokens = size;
    bucket.refilled = now;
    return;
  }
  if (now > bucket.refilled) {
    bucket.tokens += std::chrono::duration<double>(now - bucket.refilled).count() * size / 60;
    bucket.refilled = now;
  }
  bucket.tokens = std::min(bucket.tokens, size);
}

TenantLimiter::Decision TenantLimiter::admit(const Tenant& tenant, int64_t reserved_tokens, Clock::time_point now,
                                             int64_t requests) {
  LK_CHECK(reserved_tokens >= 0, "a reservation of {} tokens", reserved_tokens);
  const std::lock_guard lock(mutex_);
  Bucket& bucket = buckets_[tenant.name];
  if (tenant.max_in_flight > 0 && bucket.usage.in_flight > 0 &&
      bucket.usage.in_flight + requests > tenant.max_in_flight) {
    ++bucket.usage.refused;
    return {false, fmt::format("too many requests in flight: {} of {}", bucket.usage.in_flight, tenant.max_in_flight),
            1};
  }
  if (tenant.tokens_per_minute > 0) {
    const auto size = static_cast<double>(tenant.tokens_per_minute);
    refill(bucket, size, now);
    const auto reserved = static_cast<double>(reserved_tokens);
    const double wanted =
        std::min(reserved, size);  // more than a whole bucket: enters when the bucket is full, and leaves a debt
    constexpr double kRounding = 1e-6;
    if (bucket.tokens + kRounding < wanted) {
      ++bucket.usage.refused;
      const auto left = static_cast<int64_t>(std::max(bucket.tokens, 0.0));
      return {false,
              fmt::format("token limit reached: {} tokens wanted, {} left of {} per minute", reserved_tokens, left,
                          tenant.tokens_per_minute),
              (wanted - bucket.tokens) * 60 / size};
    }
    bucket.tokens -= reserved;
  } else {
    bucket.started = false;  // a limit set later begins with a full bucket
  }
  bucket.usage.in_flight += requests;
  bucket.usage.requests += requests;
  return {};
}

void TenantLimiter::finish(const Tenant& tenant, int64_t reserved_tokens, int64_t used_tokens, Clock::time_point now,
                           int64_t requests) {
  const std::lock_guard lock(mutex_);
  Bucket& bucket = buckets_[tenant.name];
  LK_CHECK(bucket.usage.in_flight >= requests, "finish() without admit() for tenant {}", tenant.name);
  bucket.usage.in_flight -= requests;
  bucket.usage.used_tokens += used_tokens;
  if (tenant.tokens_per_minute <= 0 || !bucket.started) return;
  const auto size = static_cast<double>(tenant.tokens_per_minute);
  refill(bucket, size, now);
  bucket.tokens =
      std::min(size, bucket.tokens + static_cast<double>(reserved_tokens) - static_cast<double>(used_tokens));
}

void TenantLimiter::retain(const std::function<bool(const std::string&)>& keep) {
  const std::lock_guard lock(mutex_);
  std::erase_if(buckets_, [&](const auto& entry) { return entry.second.usage.in_flight == 0 && !keep(entry.first); });
}

std::map<std::string, TenantLimiter::Usage> TenantLimiter::usage() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, Usage> all;
  for (const auto& [name, bucket] : buckets_) all[name] = bucket.usage;
  return all;
}

}  // namespace lk
