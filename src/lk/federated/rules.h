// SPDX-License-Identifier: Apache-2.0
// How the adapters of several clients become one. Everything is reckoned on changes of weights, dW_k = s_k B_k A_k,
// with p_k = n_k / sum of n: a rule that forgets s or a square root of singular values averages something else. Sums
// are f64 and in the order of the clients' names, so that who answered first is not in the result.
//
// Sources: FedIT arXiv:2305.05644 (fedavg), FFA-LoRA 2403.12313, RoLoRA 2409.02346, FLoRA 2409.05976, FlexLoRA
// 2402.11505, FedEx-LoRA 2410.09432, FedSA-LoRA 2410.01463, SLoRA 2308.06522; median and trimmed mean 1803.01498.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lk/federated/factors.h"

namespace lk {

enum class FederatedRule : uint8_t {
  kFedAvg,   // means of A and of B: not the mean of the changes
  kFfa,      // A common and frozen, mean of B: exact
  kRoLora,   // A and B train in turns, the other one is common: exact
  kFlora,    // stacks all ranks: exact
  kFlex,     // the mean of the changes, cut to the rank by SVD
  kFedEx,    // means of A and of B, and what they lack of the mean of the changes beside them
  kFedSa,    // mean of A; each client keeps its own B
  kSlora,    // first values of a sparse mask, then fedavg from their SVD
  kMedian,   // of each element of A and of B, without weights
  kTrimmed,  // likewise the mean without the largest and smallest ones
};
inline constexpr std::array<std::pair<FederatedRule, const char*>, 10> kFederatedRules{
    {{FederatedRule::kFedAvg, "fedavg"},
     {FederatedRule::kFfa, "ffa"},
     {FederatedRule::kRoLora, "rolora"},
     {FederatedRule::kFlora, "flora"},
     {FederatedRule::kFlex, "flex"},
     {FederatedRule::kFedEx, "fedex"},
     {FederatedRule::kFedSa, "fedsa"},
     {FederatedRule::kSlora, "slora"},
     {FederatedRule::kMedian, "median"},
     {FederatedRule::kTrimmed, "trimmed"}}};
const char* to_string(FederatedRule rule);
// Whether clients may have different ranks.
bool takes_any_ranks(FederatedRule rule);
// Whether what comes out changes by a share of each client's update and by nothing else of it, so that a bound on an
// update bounds what its client does to the result: what differential privacy needs.
bool linear_in_updates(FederatedRule rule);

struct ClientFactors {
  std::string client;
  double weight = 1;  // of its examples; > 0
  ModuleFactors factors;
};

struct RuleOptions {
  FederatedRule rule = FederatedRule::kFedAvg;
  int64_t max_rank = 0;       // flex: of the result; 0 = the largest of a client
  double trim = 0.2;          // share that trimmed leaves out at each end, in [0, 0.5)
  int64_t residual_rank = 0;  // fedex: of the residual; 0 = all of it
};

struct AggregateReport {
  double energy = 0;   // ||sum of p_k dW_k||^2 of all modules
  double error = 0;    // ||sum of p_k dW_k - what the result says|| / ||sum of p_k dW_k||
  double dropped = 0;  // energy that truncation (flex, fedex) cut off
};
struct Aggregate {
  ModuleFactors global;
  // fedex: beside `global`, scaling 1. It belongs into the weights below the adapter, or behind it as extra ranks.
  ModuleFactors residual;
  AggregateReport report;
};

// kInvalidArgument names the clients: none, modules or shapes that differ, weights out of range, different ranks where
// the rule averages factors, different scalings there. kDataLoss: values that are not finite, named by client and
// module.
Result<Aggregate> aggregate_factors(std::vector<ClientFactors> clients, const RuleOptions& options);

// Element-wise statistics of values of equal size, in the given order: the weighted mean (weights are divided by their
// sum), the median, the mean without floor(trim n) of each end: without one at least where there are three or more and
// trim is not 0, for else a single client among a few would decide. Of two nothing can be trimmed.
std::vector<float> weighted_mean(std::span<const std::span<const float>> values, std::span<const double> weights);
std::vector<float> median_of(std::span<const std::span<const float>> values);
std::vector<float> trimmed_mean(std::span<const std::span<const float>> values, double trim);

}  // namespace lk
