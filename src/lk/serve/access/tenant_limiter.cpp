// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/tenant_limiter.h"

#include <algorithm>
#include <utility>

namespace lk {

TenantLimiter::Place& TenantLimiter::Place::operator=(Place&& other) noexcept {
  if (this == &other) return *this;
  finish(0);
  limiter_ = std::exchange(other.limiter_, nullptr);
  tenant_ = std::move(other.tenant_);
  account_ = std::move(other.account_);
  requests_ = std::exchange(other.requests_, 0);
  tokens_ = std::exchange(other.tokens_, 0);
  held_bytes_ = std::exchange(other.held_bytes_, 0);
  let_in_ = std::exchange(other.let_in_, false);
  return *this;
}

bool TenantLimiter::Place::hold(int64_t bytes) {
  if (!limiter_ || bytes == held_bytes_) return true;
  const std::lock_guard lock(limiter_->mutex_);
  const int64_t more = bytes - held_bytes_;
  if (more < 0) {
    limiter_->held_.give_back(account_, -more);
  } else if (let_in_) {
    limiter_->held_.take(account_, tenant_->weight, more);
  } else if (!limiter_->held_.try_take(account_, tenant_->weight, more)) {
    ++limiter_->buckets_[tenant_->name].usage.refused;
    return false;
  }
  held_bytes_ = bytes;
  return true;
}

TenantLimiter::Decision TenantLimiter::Place::admit(int64_t tokens, int64_t choices, Clock::time_point now) {
  LK_CHECK(limiter_ != nullptr && tokens >= 0 && choices > 0, "{} tokens for {} choices", tokens, choices);
  const std::lock_guard lock(limiter_->mutex_);
  if (let_in_) {
    TenantLimiter::Bucket& bucket = limiter_->buckets_[tenant_->name];
    bucket.usage.in_flight += choices - requests_;
    bucket.usage.requests += choices;
    requests_ = choices;
    return {};
  }
  Decision decision = limiter_->charge(*tenant_, tokens, choices, now, requests_, tokens_);
  if (!decision.admitted) return decision;
  limiter_->buckets_[tenant_->name].usage.requests += choices;
  requests_ = choices;
  tokens_ = tokens;
  return decision;
}

void TenantLimiter::Place::finish(int64_t used_tokens, Clock::time_point now) {
  TenantLimiter* limiter = std::exchange(limiter_, nullptr);
  if (!limiter) return;
  const std::lock_guard lock(limiter->mutex_);
  Bucket& bucket = limiter->buckets_[tenant_->name];
  bucket.usage.in_flight -= requests_;
  bucket.usage.used_tokens += used_tokens;
  limiter->held_.give_back(account_, std::exchange(held_bytes_, 0));
  if (tenant_->tokens_per_minute <= 0 || !bucket.started) return;
  const auto size = static_cast<double>(limiter->part_of(tenant_->tokens_per_minute));
  refill(bucket, size, now);
  bucket.tokens = std::min(size, bucket.tokens + static_cast<double>(tokens_) - static_cast<double>(used_tokens));
}

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

TenantLimiter::Decision TenantLimiter::enter(std::shared_ptr<const Tenant> tenant, Place& place, Clock::time_point now,
                                             int64_t tokens, std::string account) {
  place.finish(0, now);
  const std::lock_guard lock(mutex_);
  Decision decision = charge(*tenant, tokens, 1, now, 0, 0);
  if (!decision.admitted) return decision;
  place.limiter_ = this;
  place.account_ = account.empty() ? tenant->name : std::move(account);
  place.tenant_ = std::move(tenant);
  place.requests_ = 1;
  place.tokens_ = tokens;
  return decision;
}

void TenantLimiter::enter_anyway(std::shared_ptr<const Tenant> tenant, Place& place, std::string account) {
  place.finish(0);
  const std::lock_guard lock(mutex_);
  ++buckets_[tenant->name].usage.in_flight;
  place.limiter_ = this;
  place.account_ = account.empty() ? tenant->name : std::move(account);
  place.tenant_ = std::move(tenant);
  place.requests_ = 1;
  place.let_in_ = true;
}

// A request that holds some requests and tokens already is to have these. Requires: the lock.
TenantLimiter::Decision TenantLimiter::charge(const Tenant& tenant, int64_t tokens, int64_t requests,
                                              Clock::time_point now, int64_t held_requests, int64_t held_tokens) {
  Bucket& bucket = buckets_[tenant.name];
  const auto refuse = [&](bool never, std::string reason, double retry_after_seconds) {
    ++bucket.usage.refused;
    return Decision{false, never, std::move(reason), retry_after_seconds};
  };
  const int64_t others = bucket.usage.in_flight - held_requests;
  const int64_t most = part_of(tenant.max_in_flight);
  if (most > 0 && requests > tenant.max_in_flight)
    return refuse(
        true,
        fmt::format("{} answers are asked for at once, at most {} may be in flight", requests, tenant.max_in_flight),
        0);
  if (most > 0 && others > 0 && others + requests > most)
    return refuse(false,
                  requests > 1 ? fmt::format("too many requests in flight: {} of {}, and {} more are asked for", others,
                                             most, requests)
                               : fmt::format("too many requests in flight: {} of {}", others, most),
                  1);
  if (tenant.tokens_per_minute > 0 && tokens + held_tokens > 0) {
    const auto size = static_cast<double>(part_of(tenant.tokens_per_minute));
    refill(bucket, size, now);
    const double left = bucket.tokens + static_cast<double>(held_tokens);
    // More than a whole bucket: enters when the bucket is full, and leaves a debt.
    const double wanted = std::min(static_cast<double>(tokens), size);
    constexpr double kRounding = 1e-6;
    if (left + kRounding < wanted)
      return refuse(false,
                    fmt::format("token limit reached: {} tokens wanted, {} left of {} per minute", tokens,
                                static_cast<int64_t>(std::max(left, 0.0)), part_of(tenant.tokens_per_minute)),
                    (wanted - left) * 60 / size);
    bucket.tokens = left - static_cast<double>(tokens);
  } else if (tenant.tokens_per_minute <= 0) {
    bucket.started = false;  // a limit set later begins with a full bucket
  }
  bucket.usage.in_flight += requests - held_requests;
  return {};
}

int64_t TenantLimiter::part_of(int64_t limit) const {
  if (limit <= 0) return limit;
  return std::max<int64_t>(1, limit / count_ + (rank_ < limit % count_ ? 1 : 0));
}

void TenantLimiter::set_share(int64_t rank, int64_t count) {
  LK_CHECK(count > 0 && rank >= 0 && rank < count, "part {} of {}", rank, count);
  const std::lock_guard lock(mutex_);
  rank_ = rank;
  count_ = count;
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

int64_t TenantLimiter::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_.used();
}

}  // namespace lk
