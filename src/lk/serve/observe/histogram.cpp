// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/histogram.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lk/base/check.h"

namespace lk {

size_t histogram_bucket(std::span<const double> bounds, double value) {
  if (std::isnan(value)) return bounds.size();
  return static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin());
}

void Histogram::observe(double value) {
  ++counts[histogram_bucket(bounds, value)];
  // One bad measurement must not turn the sum into NaN for ever.
  if (std::isfinite(value)) sum += value;
}

uint64_t Histogram::count() const { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

ShardedHistogram::ShardedHistogram(std::span<const double> bounds)
    : bounds_(bounds), shards_(std::make_unique<Shard[]>(kShards)) {
  LK_CHECK(bounds.size() < kMaxBuckets, "a histogram of {} bounds", bounds.size());
}

void ShardedHistogram::observe(double value) {
  static std::atomic<size_t> next_shard{0};
  thread_local const size_t shard_idx = next_shard.fetch_add(1, std::memory_order_relaxed) % kShards;
  Shard& shard = shards_[shard_idx];
  shard.counts[histogram_bucket(bounds_, value)].fetch_add(1, std::memory_order_relaxed);
  if (!std::isfinite(value)) return;
  double sum = shard.sum.load(std::memory_order_relaxed);
  while (!shard.sum.compare_exchange_weak(sum, sum + value, std::memory_order_relaxed)) {
  }
}

Histogram ShardedHistogram::read() const {
  Histogram total(bounds_);
  for (size_t i = 0; i < kShards; ++i) {
    const Shard& shard = shards_[i];
    for (size_t bucket = 0; bucket < total.counts.size(); ++bucket)
      total.counts[bucket] += shard.counts[bucket].load(std::memory_order_relaxed);
    total.sum += shard.sum.load(std::memory_order_relaxed);
  }
  return total;
}

}  // namespace lk
