// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <algorithm>

#include "lk/io/weights.h"
#include "lk/model/weights.h"

namespace lk {
namespace {

int64_t packed_bytes(const ModelConfig& c, DType act) {
  const WeightFormat format = weight_format_of(act);
  const ModelShape shape = c.shape();
  int64_t layer = 0;
  for (const ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown})
    layer += packed_weight_bytes(format, group_columns(group, shape), in_dim(projs_of(group)[0], shape));
  int64_t vectors = 0;  // norms and biases, kept in f32
  for (const WeightSpec& spec : weight_manifest(c))
    if (spec.shape.size() == 1) vectors += align_panel(spec.shape[0]) * 4;
  return c.num_layers * layer + packed_weight_bytes(format, c.vocab_size, c.hidden_dim) + vectors;
}

int64_t activation_bytes(const ModelShape& c, int64_t elem, int64_t rows) {
  const int64_t logit_rows = std::min(rows, kMaxLogitRows);
  const int64_t per_row = 8 + c.head_dim * 4 +                                // slot, cos and sin
                          c.hidden_dim * (4 + elem) +                         // residual stream, normed
                          group_columns(ProjGroup::kQkv, c) * 4 +             // q, k, v
                          c.q_dim() * elem + align_panel(c.hidden_dim) * 4 +  // attended, product
                          group_columns(ProjGroup::kGateUp, c) * 4 + c.intermediate_dim * elem;
  const int64_t per_logit_row = c.hidden_dim * (4 + elem) + align_panel(c.vocab_size) * 4;
  return rows * per_row + logit_rows * per_logit_row;
}

}  // namespace

ModelFootprint model_footprint(const ModelConfig& config, DType act, int64_t max_step_tokens) {
  const int64_t elem = dtype_bytes(act);
  return {.packed = packed_bytes(config, act),
          .embedding = config.vocab_size * config.hidden_dim * dtype_bytes(config.dtype),
          .activations = activation_bytes(config.shape(), elem, max_step_tokens),
          .page = config.num_layers * 2 * kPageTokens * config.kv_dim() * elem};
}

}  // namespace lk
