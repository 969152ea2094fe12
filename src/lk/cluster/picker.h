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
  bool is_home = false;      // of the request's adapter, by the plan
};

class Picker {
 public:
  virtual ~Picker() = default;
  // Position in `candidates`. Requires: at least one.
  virtual size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) = 0;
  // A request of this adapter was moved there by plan.
  virtual void moved(const std::string& /*adapter*/, const Candidate& /*to*/) {}
};

// "cost", "p2c" (power of two choices), "chbl" (consistent hashing with bounded loads, arXiv:1608.01350), "rr" (round
// robin), and what dLoRA (OSDI '24) does and compares itself with: "dlora" (homes by share of the work, the least
// loaded of them), "dlora-rr" (homes dealt out in turn; a move by plan makes another one), "dlora-proactive" (likewise,
// and when their batches are full somebody else's becomes one). kInvalidArgument lists them.
Result<std::unique_ptr<Picker>> make_picker(std::string_view policy, uint64_t seed = 0);
std::vector<std::string> picker_names();

// Seconds that the request and those already there would wait more if this replica got it: the price that `cost`
// compares. Source: the roofline form of a LoRA step, one more row at the cost of its KV and, if nobody runs its
// adapter there, of one more segment.
double added_latency(const RoutedRequest& request, const Candidate& candidate);

// Rendezvous order (Thaler and Ravishankar, 1998): every router sees the same.
uint64_t rendezvous_weight(std::string_view adapter, std::string_view replica);

}  // namespace lk
