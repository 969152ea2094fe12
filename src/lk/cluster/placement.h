// SPDX-License-Identifier: Apache-2.0
// place(): which adapters are at home on which replicas: where they are kept in memory, and where their requests go
// when nothing else speaks for another one. Nobody else is forbidden to serve them.
//
// After dLoRA's proactive placement (OSDI '24): adapters by their part of the work, so that each replica has its part
// of it, and the popular ones on several. Pure.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace lk {

struct PlacementProblem {
  struct Replica {
    std::string url;
    double capacity = 1;                                      // relative
    double memory = std::numeric_limits<double>::infinity();  // bytes, for adapters
  };
  struct Adapter {
    std::string name;
    double work = 0;  // relative; without any it has no home
    double bytes = 0;
  };
  std::vector<Replica> replicas;
  std::vector<Adapter> adapters;
};

struct Placement {
  std::map<std::string, std::vector<std::string>, std::less<>> homes;  // URLs by adapter
  bool is_home(std::string_view adapter, std::string_view url) const;
  bool operator==(const Placement&) const = default;
};

// Homes stay where they were while their replica has at most 15 % more than its part; new ones are where rendezvous
// hashing would have them, under the same condition. An adapter that makes more work than one replica's part has
// several homes, each with the same part of it. What fits nowhere has none. O(adapters x replicas).
Placement place(const PlacementProblem& problem, const Placement& before);

}  // namespace lk
