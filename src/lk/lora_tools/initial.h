// SPDX-License-Identifier: Apache-2.0
// The adapter that training starts from: which modules a configuration adapts, with which ranks, and the first values
// of its factors. Values as PEFT draws them, not bit for bit PEFT's.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "lk/base/status.h"
#include "lk/lora/adapter.h"

namespace lk {

enum class AdapterInit : uint8_t {
  kDefault,     // A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0
  kGaussian,    // A ~ N(0, 1/r^2), B = 0
  kOrthogonal,  // both from one random orthogonal matrix, so that B A = 0
  kPissa,       // the base's largest singular directions (arXiv:2404.02948)
  kOlora,       // the base's first directions of a QR decomposition (arXiv:2406.01775)
  kEva,         // A from the directions of the inputs (arXiv:2410.07170); drawn like kDefault here, train/ sets A
};
// As jobs files name them.
inline constexpr std::array<std::pair<AdapterInit, const char*>, 6> kAdapterInits{
    {{AdapterInit::kDefault, "default"},
     {AdapterInit::kGaussian, "gaussian"},
     {AdapterInit::kOrthogonal, "orthogonal"},
     {AdapterInit::kPissa, "pissa"},
     {AdapterInit::kOlora, "olora"},
     {AdapterInit::kEva, "eva"}}};
const char* to_string(AdapterInit init);

struct InitialAdapter {
  Adapter adapter;
  // PiSSA and OLoRA move a part of the base into the adapter: W = (W - s B0 A0) + s B0 A0. The base is shared and stays
  // as it is, so the adapter carries -B0 A0 itself, in the second half of its rank rows, which must not be trained.
  bool frozen_half = false;
};

// kInvalidArgument: a target that no module of the model matches (named), ranks or ids out of range. kUnsupported: what
// cannot be trained. num_modules > 0 is MultiLoRA (arXiv:2311.11501): `config.rank` counts for each module, the factors
// of all are stacked, and B is random as well because the scaling vectors start at zero. Equal seeds give equal values.
Result<InitialAdapter> make_initial_adapter(const ModelConfig& model, const AdapterConfig& config, AdapterInit init,
                                            int64_t num_modules, uint64_t seed, const TensorStore& base);

}  // namespace lk
