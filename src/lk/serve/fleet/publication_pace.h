// SPDX-License-Identifier: Apache-2.0
// PublicationPace: how often a tenant may publish. Each number of a version is a record of the registry for good, and
// all of them together must fit one answer of it.
#pragma once

#include <algorithm>
#include <chrono>
#include <map>
#include <string>

#include "lk/base/status.h"

namespace lk {

// Versions that one tenant may ever have published in a fleet, and how many at once and a second at one server.
inline constexpr int64_t kMostVersionsOfTenant = 5000;
inline constexpr double kPublicationsAtOnce = 200, kPublicationsPerSecond = 0.5;

class PublicationPace {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // kResourceExhausted says when again. Who is nobody's tenant ("") is the operator.
  Status enter(const std::string& tenant, Time now) {
    if (tenant.empty()) return Status();
    std::erase_if(buckets_, [&](const auto& entry) { return left(entry.second, now) >= kPublicationsAtOnce; });
    Bucket& bucket = buckets_.try_emplace(tenant, Bucket{kPublicationsAtOnce, now}).first->second;
    bucket = {.left = left(bucket, now), .at = now};
    if (bucket.left < 1)
      return resource_exhausted("tenant {} publishes too many versions: {} at once and then one in {} s", tenant,
                                kPublicationsAtOnce, 1 / kPublicationsPerSecond);
    bucket.left -= 1;
    return Status();
  }

 private:
  struct Bucket {
    double left = 0;
    Time at{};
  };
  static double left(const Bucket& bucket, Time now) {
    const double seconds = std::chrono::duration<double>(now - bucket.at).count();
    return std::min(kPublicationsAtOnce, bucket.left + seconds * kPublicationsPerSecond);
  }
  std::map<std::string, Bucket> buckets_;  // of those that are not full
};

}  // namespace lk
