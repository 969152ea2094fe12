// SPDX-License-Identifier: Apache-2.0
// Whether an adapter's numbers stay finite as they are used: converted to the type they are kept in, scaled, multiplied
// with an input and added up. Finite weights of 3e38 do not, and one such row of logits would be NaN.
//
// The rule: for an input whose elements are at most 1 in magnitude no intermediate of a product leaves f32, and nothing
// that is kept as bf16 leaves bf16. It is checked by bounds from the largest magnitudes, which any honest adapter keeps
// by thirty orders of magnitude. Errors are kDataLoss and name the module or tensor.
#pragma once

#include <string_view>

#include "lk/lora/adapter.h"

namespace lk {

// The largest magnitudes of a delta's parts; 0 where a part is absent.
struct DeltaMagnitudes {
  float a = 0, b = 0, bias = 0, dora_scale = 0;
};
DeltaMagnitudes magnitudes_of(const LoraDelta& delta);

// Of scaling * B (A x) + bias for `in` inputs.
Status check_delta(std::string_view module, int64_t in, int64_t rank, double scaling, const DeltaMagnitudes& largest);

// Of a weight that replaces the base's, `shape` as weight_shape() gives it.
Status check_replacement(WeightId weight, std::string_view tensor, std::span<const int64_t> shape, float largest);

// Of rows that become the residual stream, whose squares a norm adds up.
Status check_embedding(std::string_view tensor, int64_t hidden_dim, float largest);

}  // namespace lk
