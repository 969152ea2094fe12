// SPDX-License-Identifier: Apache-2.0
// Adapter arithmetic: one adapter out of several, by the methods of PEFT's add_weighted_adapter, and out of one an
// adapter of fewer ranks. Behind `lorikeet adapter compose`.
//
// The methods work on the changes themselves, delta_i = scaling_i B_i A_i. With `on_factors` they work on all A and all
// B apart, as PEFT's "linear", "ties", "dare_linear", "dare_ties" and "magnitude_prune" do: cheap, and not the sum of
// the changes, because products B_i A_j of different adapters appear.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lk/lora/compose.h"
#include "lk/lora_tools/task_arithmetic.h"

namespace lk {

enum class CombineMethod : uint8_t {
  kCat,             // stacks ranks: exact
  kSvd,             // the same sum in fewer ranks
  kLinear,          // only on_factors: the sum of changes is kCat and kSvd
  kTies,            // prunes by magnitude, elects signs
  kDareLinear,      // prunes at random, rescales, adds
  kDareTies,        // prunes at random, rescales, elects signs
  kMagnitudePrune,  // prunes by magnitude, adds
};
// As --method names them; PEFT's combination_type, where "_svd" is what on_factors = false means.
inline constexpr std::array<std::pair<CombineMethod, const char*>, 7> kCombineMethods{
    {{CombineMethod::kCat, "cat"},
     {CombineMethod::kSvd, "svd"},
     {CombineMethod::kLinear, "linear"},
     {CombineMethod::kTies, "ties"},
     {CombineMethod::kDareLinear, "dare_linear"},
     {CombineMethod::kDareTies, "dare_ties"},
     {CombineMethod::kMagnitudePrune, "magnitude_prune"}}};

struct CombineOptions {
  CombineMethod method = CombineMethod::kCat;
  bool on_factors = false;
  // Of the result; 0: with kCat the sum of all, else the largest of a module's parts. Not on factors, which keep
  // theirs.
  int64_t rank = 0;
  double density = 0;  // share of values that pruning keeps, in (0, 1]; needed where something is pruned
  SignElection election = SignElection::kTotal;
  uint64_t seed = 0;         // of random pruning
  bool mixed_bases = false;  // parts whose files name different bases
};

struct CombineReport {
  struct Module {
    std::string path;
    int64_t rank = 0;
    double energy = 0, dropped = 0;  // of the change, as in TruncatedDelta
  };
  std::vector<Module> modules;
  double energy = 0, dropped = 0;  // of all together
  // ||cut off|| / ||all||
  static double relative_error(double energy, double dropped);
};

struct CombinedAdapter {
  std::shared_ptr<const Adapter> adapter;  // scaling 1 everywhere; neither file nor digest
  CombineReport report;
};

// kInvalidArgument: options that contradict each other, unequal ranks on factors, weights that are not finite, parts of
// different bases, a result that could not be served. kUnsupported, naming the part: what is no low-rank change
// (compose.h), LoRA biases where values are pruned. kDataLoss: values that leave f32.
Result<CombinedAdapter> combine_adapters(std::span<const WeightedAdapter> parts, const CombineOptions& options);

// A few lines for people.
std::string render_combine_report(const CombineReport& report);

}  // namespace lk
