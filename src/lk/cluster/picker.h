// SPDX-License-Identifier: Apache-2.0
// Picker: which replica gets a request. One interface for the policy that is used (`cost`) and those it is measured
// against. Pure, as ReplicaLoad.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/cluster/replica_load.h"

namespace lk {

// A replica that may be given the request: alive, ready, and of what is asked for.
struct Candidate {
  int index = 0;    // the caller's number
  std::string key;  // its URL: for hashing, the same in every router
  const ReplicaLoad* load = nullptr;
  double cached_tokens = 0;  // of the request's prompt, that it may still have
};

class Picker {
 public:
  virtual ~Picker() = default;
  // Position in `candidates`. Requires: at least one.
  virtual size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) = 0;
};

// "cost", "p2c" (power of two choices), "chbl" (consistent hashing with bounded loads, arXiv:1608.01350), "rr" (round
// robin), "dlora" (static homes by share of the work, the least loaded of them; dLoRA, OSDI '24, section 3.1).
// kInvalidArgument lists them.
Result<std::unique_ptr<Picker>> make_picker(std::string_view policy, uint64_t seed = 0);
std::vector<std::string> picker_names();

// Seconds that the request and those already there would wait more if this replica got it: the price that `cost`
// compares. Source: the roofline form of a LoRA step, one more row at the cost of its KV and, if nobody runs its
// adapter there, of one more segment.
double added_latency(const RoutedRequest& request, const Candidate& candidate);

// Rendezvous order (Thaler and Ravishankar, 1998): every router sees the same.
uint64_t rendezvous_weight(std::string_view adapter, std::string_view replica);

}  // namespace lk
