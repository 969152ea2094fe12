// SPDX-License-Identifier: Apache-2.0
// ModuleFactors: a LoRA adapter as federated rules reckon with it: for each adapted weight A, B and the scaling, in
// host memory, without names, files or views.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "lk/lora/adapter.h"
#include "lk/lora_tools/delta_svd.h"

namespace lk {

// The change of one weight, scaling b a.
struct ScaledFactors {
  DeltaFactors factors;
  double scaling = 1;
};
using ModuleFactors = std::map<ModuleId, ScaledFactors>;

// kUnsupported, naming what it is, for an adapter that is more than low-rank changes of linears: DoRA, biases, replaced
// modules, trained tokens, embeddings.
Result<ModuleFactors> factors_of(const Adapter& adapter);
// Ranks and scalings as they are; modules of rank 0 are left out.
std::shared_ptr<Adapter> adapter_of(const ModuleFactors& factors, const ModelConfig& config, const std::string& name);

// sum of weight_i scaling_i b_i a_i by stacking ranks; the result's scaling is 1. Parts without the module count as
// zero.
struct WeightedFactors {
  const ModuleFactors* factors;
  double weight;
};
ModuleFactors stack_factors(std::span<const WeightedFactors> parts);

// Cuts every module to at most `rank` ranks, balanced between b and a, and gives it this scaling (the factors are
// divided by its root). Adds what was there and what was cut off to the energies, which may be null.
Result<ModuleFactors> truncate_factors(const ModuleFactors& factors, int64_t rank, double scaling, double* energy,
                                       double* dropped);

// The square of the Frobenius norm of all changes together.
Result<double> energy_of(const ModuleFactors& factors);

}  // namespace lk
