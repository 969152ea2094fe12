// SPDX-License-Identifier: Apache-2.0
// Rotary frequencies of every supported scaling type. Formulas as in transformers modeling_rope_utils.py.
#pragma once

#include <vector>

#include "lk/io/model_config.h"

namespace lk {

struct RopeTable {
  std::vector<double> inv_freq;    // [head_dim / 2] radians per position
  double attention_scaling = 1.0;  // multiplies cos and sin (yarn, longrope)
};

// `sequence_length` matters for the types dynamic (frequencies stretch once it exceeds max_positions) and longrope: see
// ModelConfig::rope_length().
RopeTable make_rope_table(const ModelConfig& config, int64_t sequence_length);

// cos, sin: [head_dim / 2] of one position.
void rope_row(const RopeTable& table, int64_t position, float* cos, float* sin);

}  // namespace lk
