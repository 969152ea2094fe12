// SPDX-License-Identifier: Apache-2.0
// AdapterSums: weighted sums of adapters that requests ask for by name ("a*0.7+b*0.3"), built on first use and cached.
// Their host copies live in the host tier like any adapter's; what is dropped there is summed again.
//
// Thread safety: any thread; building blocks.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/adapters/adapter_version.h"

namespace lk {

// Who asks for a sum, and how many are kept for it; 0 = as many as the cache takes.
struct SumAsker {
  std::string tenant;
  int64_t max_count = 0;
};

class AdapterSums {
 public:
  struct Term {
    AdapterLease adapter;
    double weight = 1;
  };
  // Both references must outlive this.
  AdapterSums(EngineService& service, std::shared_ptr<HostTier> host, int64_t max_count, int64_t max_bytes);

  static bool is_sum(std::string_view model) { return model.find_first_of("+*") != std::string_view::npos; }
  struct NamedTerm {
    std::string_view name;
    double weight = 1;
  };
  // kInvalidArgument for a weight that is none or beyond +-100, or for more than 8 terms.
  static Result<std::vector<NamedTerm>> parse(std::string_view expression);

  // The sum of these versions. `current` is asked whether a term is still what its name means: a sum of what was
  // retired serves the request that asked for it and is not kept. It may not call drop().
  Result<AdapterLease> get(std::string_view expression, const std::vector<Term>& terms,
                           const std::function<bool(const Term&)>& current, const SumAsker& asker = {});
  // Forgets the sums that any of these is part of: nobody can ask for them any more.
  void drop(const std::vector<AdapterLease>& parts);

  struct Stats {
    int64_t count = 0, bytes = 0;  // host bytes of all, in memory or not
  };
  Stats stats() const;

 private:
  struct Sum {
    std::string key;  // versions and weights
    std::vector<AdapterId> parts;
    AdapterLease adapter;
    std::string tenant;  // that asked for it first
  };
  AdapterLease find_locked(const std::string& key);
  void erase_locked(std::list<Sum>::iterator sum);
  void trim_locked(const SumAsker& asker);

  EngineService& service_;
  const std::shared_ptr<HostTier> host_;
  const int64_t max_count_, max_bytes_;
  mutable std::mutex mutex_;
  std::list<Sum> sums_;  // most recent first
  int64_t bytes_ = 0;
};

}  // namespace lk
