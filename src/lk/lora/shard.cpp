// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/shard.h"

namespace lk {
namespace {

struct Shard {
  Adapter adapter;
  std::shared_ptr<const Adapter> whole;  // what the views are of
};

LoraDelta delta_of(const LoraDelta& whole, Proj proj, RankId rank, std::vector<Buffer>& owned) {
  LoraDelta part = whole;
  if (divides_inputs(proj)) part.a = rank_columns(whole.a, rank, owned);
  part.b = rank_outputs(whole.b, proj, rank);
  part.bias = rank_outputs(whole.bias, proj, rank);
  part.magnitude = rank_outputs(whole.magnitude, proj, rank);
  part.dora_scale = rank_outputs(whole.dora_scale, proj, rank);
  return part;
}

}  // namespace

std::shared_ptr<const Adapter> shard_of(const std::shared_ptr<const Adapter>& whole, RankId rank) {
  if (rank.alone()) return whole;
  auto shard = std::make_shared<Shard>();
  shard->whole = whole;
  Adapter& part = shard->adapter;
  part.name = whole->name;
  part.directory = whole->directory;
  part.digest = whole->digest;
  part.file_bytes = whole->file_bytes;
  part.max_rank = whole->max_rank;
  part.own_vocab_size = whole->own_vocab_size;
  part.config = whole->config;
  part.embedding = whole->embedding;
  part.trained_token_ids = whole->trained_token_ids;
  part.trained_token_rows = whole->trained_token_rows;
  part.replaced = whole->replaced;
  if (rank.leads())
    part.lm_head = whole->lm_head;
  else
    part.replaced.lm_head = {};
  part.layers.resize(whole->layers.size());
  for (size_t layer = 0; layer < whole->layers.size(); ++layer) {
    for (size_t p = 0; p < whole->layers[layer].size(); ++p) {
      const auto& delta = whole->layers[layer][p];
      if (!delta) continue;
      auto& own = part.layers[layer][p];
      own = delta_of(*delta, static_cast<Proj>(p), rank, part.owned);
      // Fused names: projections with one A lay it out once.
      for (size_t q = 0; q < p; ++q)
        if (const auto& other = whole->layers[layer][q]; other && other->a.raw() == delta->a.raw())
          own->a = part.layers[layer][q]->a;
    }
  }
  for (ReplacedWeights::Layer& layer : part.replaced.layers)
    for (size_t p = 0; p < layer.weight.size(); ++p) {
      layer.weight[p] = rank_weight(layer.weight[p], static_cast<Proj>(p), rank, part.owned);
      layer.bias[p] = rank_outputs(layer.bias[p], static_cast<Proj>(p), rank);
    }
  return {shard, &part};
}

}  // namespace lk
