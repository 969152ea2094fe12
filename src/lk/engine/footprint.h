// SPDX-License-Identifier: Apache-2.0
// What a model takes in memory, from its configuration alone: known before a byte of its weights is read.
#pragma once

#include <cstdint>

#include "lk/io/model_config.h"
#include "lk/io/rank_slice.h"
#include "lk/tensor/dtype.h"

namespace lk {

// Rows of logits computed at a time: enough for the product to be compute bound, small against the pool.
inline constexpr int64_t kMaxLogitRows = 64;

// Bytes.
struct ModelFootprint {
  int64_t packed = 0;       // matrices as the kernels read them, norms and biases
  int64_t embedding = 0;    // rows of the checkpoint, which stays mapped; its other pages may leave after packing
  int64_t activations = 0;  // buffers of one step
  int64_t page = 0;         // one page of the pool: 16 tokens of K and V of every layer
};

// `act` is the compute type, bf16 or f32; `max_step_tokens` the rows of a step. What one rank takes, with the embedding
// counted for each; check_num_ranks() allows them.
ModelFootprint model_footprint(const ModelConfig& config, DType act, int64_t max_step_tokens, RankId rank = {});
// All ranks of one process, which share the embedding.
ModelFootprint footprint_of_ranks(const ModelConfig& config, DType act, int64_t max_step_tokens, int num_ranks);

}  // namespace lk
