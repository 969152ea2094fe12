// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <algorithm>

#include "lk/io/weights.h"
#include "lk/model/decoder.h"

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
  const int64_t head = c.has_lm_head ? packed_weight_bytes(format, c.vocab_size, c.hidden_dim) : 0;
  return c.num_layers * layer + head + vectors;
}

}  // namespace

ModelFootprint model_footprint(const ModelConfig& config, DType act, int64_t max_step_tokens) {
  const int64_t elem = dtype_bytes(act);
  return {.packed = packed_bytes(config, act),
          .embedding = config.vocab_size * config.hidden_dim * dtype_bytes(config.dtype),
          .activations =
              Decoder::buffer_bytes(config.shape(), act, max_step_tokens, std::min(max_step_tokens, kMaxLogitRows)),
          .page = config.num_layers * 2 * kPageTokens * config.kv_dim() * elem};
}

}  // namespace lk
