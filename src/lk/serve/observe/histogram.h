// SPDX-License-Identifier: Apache-2.0
// Histograms with fixed bounds: a plain one for use under a lock, and one that many threads fill without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace lk {

// counts[i] holds values in (bounds[i - 1], bounds[i]]; the last entry what is above all bounds. `bounds` is not owned.
struct Histogram {
  std::span<const double> bounds;
  std::vector<uint64_t> counts;
  double sum = 0;

  Histogram() = default;
  explicit Histogram(std::span<const double> upper_bounds) : bounds(upper_bounds), counts(upper_bounds.size() + 1) {}
  void observe(double value);
  uint64_t count() const;
};

// The bucket of `value`; NaN belongs to the last one, as above all bounds.
size_t histogram_bucket(std::span<const double> bounds, double value);

// Thread safe. Threads are spread over shards of their own cache lines, so that an observation is two uncontended
// atomic additions.
class ShardedHistogram {
 public:
  explicit ShardedHistogram(std::span<const double> bounds);
  void observe(double value);
  // The sum over the shards. An observation under way may be missing, or be in `sum` and not yet in `counts`.
  Histogram read() const;

 private:
  static constexpr size_t kShards = 16;
  static constexpr size_t kMaxBuckets = 31;
  struct alignas(64) Shard {
    std::atomic<double> sum{0};
    std::array<std::atomic<uint64_t>, kMaxBuckets> counts{};
  };
  std::span<const double> bounds_;
  std::unique_ptr<Shard[]> shards_;
};

}  // namespace lk
