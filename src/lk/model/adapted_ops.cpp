// SPDX-License-Identifier: Apache-2.0
#include "lk/model/adapted_ops.h"

#include <algorithm>
#include <array>

namespace lk {
namespace {

// Where the embedding of a token comes from.
EmbedRow embed_row(const ModelWeights& weights, const ResidentAdapter* adapter, int32_t token) {
  const TensorView* table = &weights.embedding;
  int64_t row = token;
  EmbedRow result{.token = token};
  if (adapter) {
    const ResidentAdapter::Embedding& own = adapter->embedding;
    if (own.table.defined()) table = &own.table;
    if (const auto it = own.trained_row_of.find(token); it != own.trained_row_of.end()) {
      table = &own.trained_rows;
      row = it->second;
    }
    if (own.delta) result.delta = &*own.delta;
  }
  result.source = table->row(row);
  result.dtype = table->dtype();
  return result;
}

const ResidentAdapter::Layer* layer_of(const AdapterRun& run, int64_t layer) {
  return run.adapter ? &run.adapter->layers[static_cast<size_t>(layer)] : nullptr;
}
// The group's W' of a run, or null: it runs on W.
const MergedWeights::Layer* merged_layer_of(const AdapterRun& run, const LinearCall& call) {
  if (!run.merged || call.layer == LinearCall::kHead) return nullptr;
  const MergedWeights::Layer& merged = run.merged->layers[static_cast<size_t>(call.layer)];
  return merged.linear[static_cast<size_t>(call.group)].data ? &merged : nullptr;
}
// The low-rank parts of a run, or null.
const std::vector<LoraProj>* deltas_of(const AdapterRun& run, const LinearCall& call) {
  if (!run.adapter || run.dormant || merged_layer_of(run, call)) return nullptr;
  const std::vector<LoraProj>& own = call.layer == LinearCall::kHead
                                         ? run.adapter->lm_head
                                         : layer_of(run, call.layer)->groups[static_cast<size_t>(call.group)];
  return own.empty() ? nullptr : &own;
}

// Chooses the weight of a norm: what the run's adapter replaces it with, or the base's.
auto norm_of(int64_t layer, const float* base, AdaptedOps::Norm norm) {
  return [=](const AdapterRun& run) {
    const ResidentAdapter::Layer* own = layer_of(run, layer);
    return own && own->*norm ? own->*norm : base;
  };
}

}  // namespace

AdaptedOps::AdaptedOps(const ModelWeights& weights, Backend& backend, int64_t max_rows, Collective* collective)
    : weights_(weights), backend_(backend), collective_(collective), act_bytes_(dtype_bytes(weights.act)) {
  embed_rows_.reserve(static_cast<size_t>(max_rows));
  segments_.reserve(static_cast<size_t>(max_rows));
  sums_.reserve(static_cast<size_t>(max_rows) + 1);
}

void AdaptedOps::embed(std::span<const int32_t> tokens, std::span<const AdapterRun> runs, float* y) {
  const int64_t dim = weights_.shape.hidden_dim;
  embed_rows_.clear();
  for_each_stretch(
      runs, static_cast<int64_t>(tokens.size()), [](const AdapterRun& run) { return run.adapter; },
      [&](const ResidentAdapter* adapter, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          embed_rows_.push_back(embed_row(weights_, adapter, tokens[static_cast<size_t>(row)]));
      });
  backend_.embed({.rows = embed_rows_, .y = y, .y_stride = dim, .dim = dim});
}

// --- Norms

void AdaptedOps::rms_norm(const float* x, int64_t x_stride, int64_t dim, int64_t num_rows, const float* weight, void* y,
                          DType y_dtype, int64_t y_stride) {
  backend_.rms_norm({.x = x,
                     .x_stride = x_stride,
                     .weight = weight,
                     .y = y,
                     .y_dtype = y_dtype,
                     .y_stride = y_stride,
                     .num_rows = num_rows,
                     .dim = dim,
                     .eps = static_cast<float>(weights_.config.rms_norm_eps)});
}

void AdaptedOps::norm(Norm norm, int64_t layer, const float* x, int64_t num_rows, std::span<const AdapterRun> runs,
                      void* y) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const float* base = norm == &ResidentAdapter::Layer::input_norm ? w.input_norm : w.post_norm;
  const int64_t dim = weights_.shape.hidden_dim;
  for_each_stretch(runs, num_rows, norm_of(layer, base, norm), [&](const float* weight, int64_t begin, int64_t end) {
    rms_norm(x + begin * dim, dim, dim, end - begin, weight, static_cast<std::byte*>(y) + begin * dim * act_bytes_,
             weights_.act, dim);
  });
}

void AdaptedOps::final_norm(const float* x, int64_t num_rows, std::span<const AdapterRun> runs, void* y,
                            DType y_dtype) {
  const int64_t dim = weights_.shape.hidden_dim;
  const auto choose = [&](const AdapterRun& run) {
    return run.adapter && run.adapter->final_norm ? run.adapter->final_norm : weights_.final_norm;
  };
  for_each_stretch(runs, num_rows, choose, [&](const float* weight, int64_t begin, int64_t end) {
    rms_norm(x + begin * dim, dim, dim, end - begin, weight,
             static_cast<std::byte*>(y) + begin * dim * dtype_bytes(y_dtype), y_dtype, dim);
  });
}

void AdaptedOps::head_norms(int64_t layer, float* qkv, int64_t num_rows, std::span<const AdapterRun> runs) {
  struct HeadNorm {
    Proj proj;
    int64_t num_heads;
    const float* base;
    Norm own;
  };
  const ModelShape& shape = weights_.shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const std::array<HeadNorm, 2> norms{{{Proj::kQ, shape.num_heads, w.q_norm, &ResidentAdapter::Layer::q_norm},
                                       {Proj::kK, shape.num_kv_heads, w.k_norm, &ResidentAdapter::Layer::k_norm}}};
  const int64_t dim = shape.head_dim, stride = group_columns(ProjGroup::kQkv, shape);
  for (const HeadNorm& norm : norms) {
    float* x = qkv + group_column(norm.proj, shape);
    for_each_stretch(runs, num_rows, norm_of(layer, norm.base, norm.own),
                     [&](const float* weight, int64_t begin, int64_t end) {
                       for (int64_t head = 0; head < norm.num_heads; ++head) {
                         float* rows = x + begin * stride + head * dim;
                         rms_norm(rows, stride, dim, end - begin, weight, rows, DType::kF32, stride);
                       }
                     });
  }
}

void AdaptedOps::rotate(float* qkv, int64_t num_rows, const float* cos, const float* sin) {
  const ModelShape& shape = weights_.shape;
  for (const auto& [proj, num_heads] : {std::pair(Proj::kQ, shape.num_heads), std::pair(Proj::kK, shape.num_kv_heads)})
    backend_.rope({.x = qkv + group_column(proj, shape),
                   .x_stride = group_columns(ProjGroup::kQkv, shape),
                   .num_rows = num_rows,
                   .num_heads = num_heads,
                   .head_dim = shape.head_dim,
                   .cos = cos,
                   .sin = sin});
}

// --- Linears

int64_t AdaptedOps::columns_of_call(const LinearCall& call) const {
  if (call.layer != LinearCall::kHead) return group_columns(call.group, weights_.shape);
  return call.head_stride > 0 ? call.head_stride : align_panel(weights_.shape.vocab_size);
}

void AdaptedOps::linear(const LinearCall& call) {
  if (collective_ && sums_over_ranks(call)) {
    add_over_ranks(call);
  } else {
    add_products(call);
    add_deltas(call);
  }
  if (call.layer == LinearCall::kHead)
    add_trained_columns(call);
  else
    add_biases(call);
}

// Rows of adapters that replace a matrix of this group go through their own, merged ones through W'; all others share
// one product.
void AdaptedOps::add_products(const LinearCall& call) {
  if (call.layer == LinearCall::kHead) {
    const auto head_of = [&](const AdapterRun& run) {
      return run.adapter && run.adapter->replaced_lm_head ? run.adapter->replaced_lm_head : &weights_.lm_head;
    };
    return for_each_stretch(call.runs, call.num_rows, head_of, [&](const PackedWeight* w, int64_t begin, int64_t end) {
      product(call, *w, 0, begin, end);
    });
  }
  const PackedWeight& base = weights_.layers[static_cast<size_t>(call.layer)].linear[static_cast<size_t>(call.group)];
  struct Source {
    const PackedWeight* whole;  // of the group, or null:
    const ResidentAdapter::Layer* own;
    bool operator==(const Source&) const = default;
  };
  const auto choose = [&](const AdapterRun& run) -> Source {
    if (const MergedWeights::Layer* merged = merged_layer_of(run, call))
      return {&merged->linear[static_cast<size_t>(call.group)], nullptr};
    const ResidentAdapter::Layer* own = layer_of(run, call.layer);
    if (own && own->replaces(call.group)) return {nullptr, own};
    return {&base, nullptr};
  };
  for_each_stretch(call.runs, call.num_rows, choose, [&](const Source& source, int64_t begin, int64_t end) {
    if (source.whole) return product(call, *source.whole, 0, begin, end);
    for (Proj proj : projs_of(call.group)) {
      const int64_t column = group_column(proj, weights_.shape);
      const PackedWeight* own = source.own->replaced[static_cast<size_t>(proj)];
      product(call, own ? *own : columns_of(base, column, out_dim(proj, weights_.shape)), column, begin, end);
    }
  });
}

// Rows [begin, end) of a product whose columns start at `column` of the group's.
void AdaptedOps::product(const LinearCall& call, const PackedWeight& w, int64_t column, int64_t begin, int64_t end) {
  const int64_t y_stride = columns_of_call(call);
  backend_.gemm({.x = static_cast<const std::byte*>(call.x) + begin * call.x_stride * act_bytes_,
                 .act = weights_.act,
                 .x_stride = call.x_stride,
                 .w = w,
                 .y = call.y + begin * y_stride + column,
                 .y_stride = y_stride,
                 .num_rows = end - begin,
                 .num_shards = shards_of(call)});
}

// o and down sum over what the ranks divide among them; the others' inputs are whole on every rank.
bool AdaptedOps::sums_over_ranks(const LinearCall& call) const {
  return call.layer != LinearCall::kHead && divides_inputs(projs_of(call.group)[0]);
}

int64_t AdaptedOps::shards_of(const LinearCall& call) const {
  return sums_over_ranks(call) ? weights_.shape.num_shards : 1;
}

// The products with the weights and with A are summed, in one message; what comes after them is done by every rank, in
// the order of a whole model.
void AdaptedOps::add_over_ranks(const LinearCall& call) {
  LinearCall part = call;
  part.y = call.y_part;
  part.rank_rows = call.rank_rows_part;
  add_products(part);
  add_deltas(part, LoraPhase::kShrink);
  const auto sum_of = [](const float* from, float* to, int64_t stride, int64_t first, int64_t end, int64_t n) {
    return RankSum{.part = from + first * stride,
                   .part_stride = stride,
                   .sum = to + first * stride,
                   .sum_stride = stride,
                   .num_rows = end - first,
                   .n = n};
  };
  sums_.clear();
  sums_.push_back(sum_of(part.y, call.y, columns_of_call(call), 0, call.num_rows, weights_.shape.hidden_dim));
  for (const LoraSegment& segment : segments_) {
    int64_t ranks = 0;
    for (const LoraProj& proj : segment.projs) ranks += proj.a.num_rows;
    if (ranks > 0)
      sums_.push_back(
          sum_of(part.rank_rows, call.rank_rows, call.rank_stride, segment.row_begin, segment.row_end, ranks));
  }
  collective_->sum(sums_, backend_.threads());
  add_deltas(call, LoraPhase::kExpand);
}

int64_t AdaptedOps::rank_stride_of(const LinearCall& call) {
  int64_t most = 0;
  for (const AdapterRun& run : call.runs) {
    int64_t ranks = 0;
    if (const std::vector<LoraProj>* own = deltas_of(run, call))
      for (const LoraProj& proj : *own) ranks += proj.a.num_rows;
    most = std::max(most, ranks);
  }
  return (most + 15) / 16 * 16;
}

// The low-rank products of the runs that need them, and the LoRA biases of merged ones.
void AdaptedOps::add_deltas(const LinearCall& call, LoraPhase phase) {
  struct Delta {
    const float* merged_bias;
    const std::vector<LoraProj>* projs;
    const std::byte* base;  // of the rank rows
    bool operator==(const Delta&) const = default;
  };
  const std::byte* slice = pool_base_ + std::max<int64_t>(call.layer, 0) * slice_bytes_;
  const auto choose = [&](const AdapterRun& run) -> Delta {
    if (const MergedWeights::Layer* merged = merged_layer_of(run, call))
      return {merged->bias[static_cast<size_t>(call.group)], nullptr, nullptr};
    const std::vector<LoraProj>* projs = deltas_of(run, call);
    return {nullptr, projs, projs && run.adapter->rank_rows ? run.adapter->rank_rows : slice};
  };
  segments_.clear();
  for_each_stretch(call.runs, call.num_rows, choose, [&](const Delta& delta, int64_t begin, int64_t end) {
    if (delta.merged_bias && phase != LoraPhase::kShrink)
      add_bias(call, delta.merged_bias, 0, columns_of_call(call), begin, end);
    if (delta.projs)
      segments_.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end), delta.base, *delta.projs});
  });
  backend_.lora({.x = call.x_of_deltas ? call.x_of_deltas : call.x,
                 .act = weights_.act,
                 .x_stride = call.x_stride,
                 .y = call.y,
                 .y_stride = columns_of_call(call),
                 .segments = segments_,
                 .v = call.rank_rows,
                 .v_stride = call.rank_stride,
                 .num_shards = shards_of(call),
                 .phase = phase});
}

// The base's bias or what replaces it, outside the LoRA and DoRA terms, as PEFT adds it.
void AdaptedOps::add_biases(const LinearCall& call) {
  const float* base = weights_.layers[static_cast<size_t>(call.layer)].bias[static_cast<size_t>(call.group)];
  if (!base) return;
  const auto choose = [&](const AdapterRun& run) -> const ResidentAdapter::Layer* {
    const ResidentAdapter::Layer* own = layer_of(run, call.layer);
    return own && own->replaces(call.group) ? own : nullptr;
  };
  for_each_stretch(call.runs, call.num_rows, choose,
                   [&](const ResidentAdapter::Layer* own, int64_t begin, int64_t end) {
                     if (!own) return add_bias(call, base, 0, columns_of_call(call), begin, end);
                     for (Proj proj : projs_of(call.group)) {
                       const int64_t column = group_column(proj, weights_.shape);
                       const float* bias = own->replaced_bias[static_cast<size_t>(proj)];
                       add_bias(call, bias ? bias : base + column, column, out_dim(proj, weights_.shape), begin, end);
                     }
                   });
}

void AdaptedOps::add_bias(const LinearCall& call, const float* bias, int64_t column, int64_t num_columns, int64_t begin,
                          int64_t end) {
  const int64_t y_stride = columns_of_call(call);
  backend_.add_bias(call.y + begin * y_stride + column, y_stride, bias, end - begin, num_columns);
}

// A tied head follows the trained rows of the embedding.
void AdaptedOps::add_trained_columns(const LinearCall& call) {
  const int64_t y_stride = columns_of_call(call);
  for_each_stretch(
      call.runs, call.num_rows, [](const AdapterRun& run) { return run.adapter; },
      [&](const ResidentAdapter* own, int64_t begin, int64_t end) {
        if (!own || own->trained_head.n == 0) return;
        backend_.gemm_columns({.x = static_cast<const std::byte*>(call.x) + begin * call.x_stride * act_bytes_,
                               .act = weights_.act,
                               .x_stride = call.x_stride,
                               .w = own->trained_head,
                               .columns = own->trained_columns,
                               .y = call.y + begin * y_stride,
                               .y_stride = y_stride,
                               .num_rows = end - begin});
      });
}

}  // namespace lk
