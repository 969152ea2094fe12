// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <algorithm>

#include "lk/io/weights.h"
#include "lk/model/decoder.h"

namespace lk {
namespace {

int64_t packed_bytes(const ModelConfig& c, DType act, RankId rank) {
  const WeightFormat format = weight_format_of(act);
  const ModelShape shape = rank_share(c.shape(), rank.size);
  int64_t layer = 0, bias = 0;
  for (const ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown})
    layer += packed_weight_bytes(format, group_columns(group, shape), in_dim(projs_of(group)[0], shape));
  if (c.qkv_bias) bias += group_columns(ProjGroup::kQkv, shape);
  if (c.o_bias) bias += group_columns(ProjGroup::kO, shape);
  if (c.mlp_bias) bias += group_columns(ProjGroup::kGateUp, shape) + group_columns(ProjGroup::kDown, shape);
  int64_t norms = 0;
  for (const WeightSpec& spec : weight_manifest(c))
    if (spec.shape.size() == 1 && !spec.name.ends_with(".bias")) norms += align_panel(spec.shape[0]);
  const int64_t head = c.has_lm_head && rank.leads() ? packed_weight_bytes(format, c.vocab_size, c.hidden_dim) : 0;
  return c.num_layers * (layer + bias * 4) + norms * 4 + head;  // norms and biases are kept in f32
}

}  // namespace

ModelFootprint model_footprint(const ModelConfig& config, DType act, int64_t max_step_tokens, RankId rank) {
  const int64_t elem = dtype_bytes(act), logit_rows = rank.leads() ? std::min(max_step_tokens, kMaxLogitRows) : 0;
  const ModelShape shape = rank_share(config.shape(), rank.size);
  return {.packed = packed_bytes(config, act, rank),
          .embedding = config.vocab_size * config.hidden_dim * dtype_bytes(config.dtype),
          .activations = Decoder::buffer_bytes(shape, act, max_step_tokens, logit_rows, rank.size),
          .page = config.num_layers * 2 * kPageTokens * shape.kv_dim() * elem};
}

ModelFootprint footprint_of_ranks(const ModelConfig& config, DType act, int64_t max_step_tokens, int num_ranks) {
  ModelFootprint all = model_footprint(config, act, max_step_tokens, {0, num_ranks});
  for (int rank = 1; rank < num_ranks; ++rank) {
    const ModelFootprint more = model_footprint(config, act, max_step_tokens, {rank, num_ranks});
    all.packed += more.packed;
    all.activations += more.activations;
    all.page += more.page;
  }
  return all;
}

}  // namespace lk
