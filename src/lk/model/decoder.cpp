// SPDX-License-Identifier: Apache-2.0
#include "lk/model/decoder.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Rows of the MLP computed at a time: still compute bound, and their products fit the cache.
constexpr int64_t kMlpRows = 256;

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
const MergedWeights::Layer* merged_layer_of(const AdapterRun& run, int64_t layer, ProjGroup group) {
  if (!run.merged) return nullptr;
  const MergedWeights::Layer& merged = run.merged->layers[static_cast<size_t>(layer)];
  return merged.linear[static_cast<size_t>(group)].data ? &merged : nullptr;
}

// Chooses the weight of a norm: what the run's adapter replaces it with, or the base's.
auto norm_of(int64_t layer, const float* base, const float* ResidentAdapter::Layer::*replaced) {
  return [=](const AdapterRun& run) {
    const ResidentAdapter::Layer* own = layer_of(run, layer);
    return own && own->*replaced ? own->*replaced : base;
  };
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const ModelWeights> weights, Backend& backend, int64_t max_rows,
                 int64_t max_logit_rows)
    : weights_(std::move(weights)), backend_(backend), max_rows_(max_rows), max_logit_rows_(max_logit_rows) {
  const ModelShape& shape = weights_->shape;
  act_bytes_ = dtype_bytes(weights_->act);
  kv_bytes_ = kPageTokens * shape.kv_dim() * act_bytes_;
  qkv_columns_ = group_columns(ProjGroup::kQkv, shape);
  gate_up_columns_ = group_columns(ProjGroup::kGateUp, shape);
  product_columns_ = align_panel(shape.hidden_dim);
  logits_stride_ = align_panel(shape.vocab_size);
  for (const auto& [buffer, bytes] : buffers(shape, weights_->act, max_rows, max_logit_rows))
    this->*buffer = backend.allocate(bytes);
  embed_rows_.reserve(static_cast<size_t>(max_rows));
  segments_.reserve(static_cast<size_t>(max_rows));
  local_runs_.reserve(static_cast<size_t>(max_rows));
}

std::vector<std::pair<DeviceBuffer Decoder::*, int64_t>> Decoder::buffers(const ModelShape& shape, DType act,
                                                                          int64_t max_rows, int64_t max_logit_rows) {
  const int64_t elem = dtype_bytes(act), mlp_rows = std::min(max_rows, kMlpRows);
  return {{&Decoder::slots_, max_rows * 8},
          {&Decoder::cos_, max_rows * shape.head_dim / 2 * 4},
          {&Decoder::sin_, max_rows * shape.head_dim / 2 * 4},
          {&Decoder::hidden_, max_rows * shape.hidden_dim * 4},
          {&Decoder::normed_, max_rows * shape.hidden_dim * elem},
          {&Decoder::qkv_, max_rows * group_columns(ProjGroup::kQkv, shape) * 4},
          {&Decoder::attended_, max_rows * shape.q_dim() * elem},
          {&Decoder::gate_up_, mlp_rows * group_columns(ProjGroup::kGateUp, shape) * 4},
          {&Decoder::activated_, mlp_rows * shape.intermediate_dim * elem},
          {&Decoder::product_, max_rows * align_panel(shape.hidden_dim) * 4},
          {&Decoder::rank_rows_, std::max(max_rows, max_logit_rows) * kMaxGroupRank * 4},
          {&Decoder::head_input_, max_logit_rows * shape.hidden_dim * elem},
          {&Decoder::gathered_, max_logit_rows * shape.hidden_dim * 4},
          {&Decoder::logits_, max_logit_rows * align_panel(shape.vocab_size) * 4}};
}

int64_t Decoder::buffer_bytes(const ModelShape& shape, DType act, int64_t max_rows, int64_t max_logit_rows) {
  int64_t total = 0;
  for (const auto& [buffer, bytes] : buffers(shape, act, max_rows, max_logit_rows)) total += bytes;
  return total;
}

void Decoder::forward(const DecoderBatch& batch, const std::function<void()>& between_layers) {
  LK_CHECK(static_cast<int64_t>(batch.token_ids.size()) <= max_rows_ && pool_base_ != nullptr);
  backend_.upload(slots_.as<int64_t>(), batch.slots);
  backend_.upload(cos_.as<float>(), batch.cos);
  backend_.upload(sin_.as<float>(), batch.sin);
  embed(batch);
  for (int64_t layer = 0; layer < weights_->shape.num_layers; ++layer) {
    attention_block(layer, batch);
    mlp_block(layer, batch);
    if (between_layers) between_layers();
  }
}

void Decoder::embed(const DecoderBatch& batch) {
  const int64_t dim = weights_->shape.hidden_dim;
  embed_rows_.clear();
  for_each_stretch(
      batch.runs, static_cast<int64_t>(batch.token_ids.size()), [](const AdapterRun& run) { return run.adapter; },
      [&](const ResidentAdapter* adapter, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          embed_rows_.push_back(embed_row(*weights_, adapter, batch.token_ids[static_cast<size_t>(row)]));
      });
  backend_.embed({.rows = embed_rows_, .y = hidden_.as<float>(), .y_stride = dim, .dim = dim});
}

void Decoder::attention_block(int64_t layer, const DecoderBatch& batch) {
  const ModelShape& shape = weights_->shape;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  float* q = qkv_.as<float>();
  float* k = q + group_column(Proj::kK, shape);
  float* v = q + group_column(Proj::kV, shape);

  input_norm(layer, w.input_norm, &ResidentAdapter::Layer::input_norm, batch);
  linear({.layer = layer,
          .group = ProjGroup::kQkv,
          .x = normed_.data(),
          .x_stride = shape.hidden_dim,
          .y = q,
          .num_rows = num_rows,
          .runs = batch.runs});
  if (weights_->config.qk_norm) {
    head_norm(q, shape.num_heads, w.q_norm, &ResidentAdapter::Layer::q_norm, layer, batch);
    head_norm(k, shape.num_kv_heads, w.k_norm, &ResidentAdapter::Layer::k_norm, layer, batch);
  }
  for (const auto& [x, num_heads] : {std::pair(q, shape.num_heads), std::pair(k, shape.num_kv_heads)})
    backend_.rope({.x = x,
                   .x_stride = qkv_columns_,
                   .num_rows = num_rows,
                   .num_heads = num_heads,
                   .head_dim = shape.head_dim,
                   .cos = cos_.as<float>(),
                   .sin = sin_.as<float>()});
  const KvLayer kv{.base = pool_base_ + layer * slice_bytes(),
                   .page_stride = page_bytes(),
                   .v_offset = kv_bytes_,
                   .dtype = weights_->act,
                   .num_kv_heads = shape.num_kv_heads,
                   .head_dim = shape.head_dim};
  backend_.store_kv({.k = k,
                     .v = v,
                     .k_stride = qkv_columns_,
                     .v_stride = qkv_columns_,
                     .slots = slots_.as<int64_t>(),
                     .num_rows = num_rows,
                     .kv = kv});
  backend_.attention({.q = q,
                      .q_stride = qkv_columns_,
                      .y = attended_.data(),
                      .y_stride = shape.q_dim(),
                      .num_heads = shape.num_heads,
                      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim))),
                      .window = weights_->config.layer_window[static_cast<size_t>(layer)],
                      .seqs = batch.sequences,
                      .kv = kv});
  linear({.layer = layer,
          .group = ProjGroup::kO,
          .x = attended_.data(),
          .x_stride = shape.q_dim(),
          .y = product_.as<float>(),
          .num_rows = num_rows,
          .runs = batch.runs});
  add_to_residual(0, num_rows);
}

void Decoder::mlp_block(int64_t layer, const DecoderBatch& batch) {
  const ModelShape& shape = weights_->shape;
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  input_norm(layer, weights_->layers[static_cast<size_t>(layer)].post_norm, &ResidentAdapter::Layer::post_norm, batch);
  // In blocks of rows, so that the widest product (f32, 2 x intermediate) is still in the cache when LoRA and swiglu
  // read it.
  for (int64_t begin = 0; begin < num_rows; begin += kMlpRows) {
    const int64_t rows = std::min(num_rows - begin, kMlpRows);
    clip_runs(batch.runs, begin, begin + rows, local_runs_);
    linear({.layer = layer,
            .group = ProjGroup::kGateUp,
            .x = normed_.data() + begin * shape.hidden_dim * act_bytes_,
            .x_stride = shape.hidden_dim,
            .y = gate_up_.as<float>(),
            .num_rows = rows,
            .runs = local_runs_});
    backend_.swiglu({.x = gate_up_.as<float>(),
                     .x_stride = gate_up_columns_,
                     .up_offset = group_column(Proj::kUp, shape),
                     .y = activated_.data(),
                     .y_dtype = weights_->act,
                     .y_stride = shape.intermediate_dim,
                     .num_rows = rows,
                     .dim = shape.intermediate_dim});
    linear({.layer = layer,
            .group = ProjGroup::kDown,
            .x = activated_.data(),
            .x_stride = shape.intermediate_dim,
            .y = product_.as<float>(),
            .num_rows = rows,
            .runs = local_runs_});
    add_to_residual(begin, rows);
  }
}

void Decoder::add_to_residual(int64_t begin, int64_t num_rows) {
  const int64_t dim = weights_->shape.hidden_dim;
  backend_.add(hidden_.as<float>() + begin * dim, dim, product_.as<float>(), product_columns_, num_rows, dim);
}

// --- Linears

void Decoder::linear(const LinearCall& call) {
  add_products(call);
  add_deltas(call);
  add_biases(call);
}

// Rows of adapters that replace a matrix of this group go through their own, merged ones through W'; all others share
// one product.
void Decoder::add_products(const LinearCall& call) {
  const PackedWeight& base = weights_->layers[static_cast<size_t>(call.layer)].linear[static_cast<size_t>(call.group)];
  struct Source {
    const PackedWeight* whole;  // of the group, or null:
    const ResidentAdapter::Layer* own;
    bool operator==(const Source&) const = default;
  };
  const auto choose = [&](const AdapterRun& run) -> Source {
    if (const MergedWeights::Layer* merged = merged_layer_of(run, call.layer, call.group))
      return {&merged->linear[static_cast<size_t>(call.group)], nullptr};
    const ResidentAdapter::Layer* own = layer_of(run, call.layer);
    if (own && own->replaces(call.group)) return {nullptr, own};
    return {&base, nullptr};
  };
  for_each_stretch(call.runs, call.num_rows, choose, [&](const Source& source, int64_t begin, int64_t end) {
    if (source.whole) return product(call, *source.whole, 0, begin, end);
    for (Proj proj : projs_of(call.group)) {
      const int64_t column = group_column(proj, weights_->shape);
      const PackedWeight* own = source.own->replaced[static_cast<size_t>(proj)];
      product(call, own ? *own : columns_of(base, column, out_dim(proj, weights_->shape)), column, begin, end);
    }
  });
}

void Decoder::product(const LinearCall& call, const PackedWeight& w, int64_t column, int64_t begin, int64_t end) {
  const int64_t y_stride = group_columns(call.group, weights_->shape);
  backend_.gemm({.x = static_cast<const std::byte*>(call.x) + begin * call.x_stride * act_bytes_,
                 .act = weights_->act,
                 .x_stride = call.x_stride,
                 .w = w,
                 .y = call.y + begin * y_stride + column,
                 .y_stride = y_stride,
                 .num_rows = end - begin});
}

// The low-rank products of the runs that need them, and the LoRA biases of merged ones.
void Decoder::add_deltas(const LinearCall& call) {
  const auto g = static_cast<size_t>(call.group);
  const int64_t y_stride = group_columns(call.group, weights_->shape);
  struct Delta {
    const float* merged_bias;
    const std::vector<LoraProj>* projs;
    bool operator==(const Delta&) const = default;
  };
  const auto choose = [&](const AdapterRun& run) -> Delta {
    if (const MergedWeights::Layer* merged = merged_layer_of(run, call.layer, call.group))
      return {merged->bias[g], nullptr};
    const ResidentAdapter::Layer* own = layer_of(run, call.layer);
    return {nullptr, own && !own->groups[g].empty() ? &own->groups[g] : nullptr};
  };
  segments_.clear();
  for_each_stretch(call.runs, call.num_rows, choose, [&](const Delta& delta, int64_t begin, int64_t end) {
    if (delta.merged_bias) add_bias(call, delta.merged_bias, 0, y_stride, begin, end);
    if (delta.projs) add_segment(begin, end, pool_base_ + call.layer * slice_bytes(), *delta.projs);
  });
  lora(call.x, call.x_stride, call.y, y_stride);
}

// The base's bias or what replaces it, outside the LoRA and DoRA terms, as PEFT adds it.
void Decoder::add_biases(const LinearCall& call) {
  const float* base = weights_->layers[static_cast<size_t>(call.layer)].bias[static_cast<size_t>(call.group)];
  if (!base) return;
  const auto choose = [&](const AdapterRun& run) -> const ResidentAdapter::Layer* {
    const ResidentAdapter::Layer* own = layer_of(run, call.layer);
    return own && own->replaces(call.group) ? own : nullptr;
  };
  for_each_stretch(call.runs, call.num_rows, choose,
                   [&](const ResidentAdapter::Layer* own, int64_t begin, int64_t end) {
                     if (!own) return add_bias(call, base, 0, group_columns(call.group, weights_->shape), begin, end);
                     for (Proj proj : projs_of(call.group)) {
                       const int64_t column = group_column(proj, weights_->shape);
                       const float* bias = own->replaced_bias[static_cast<size_t>(proj)];
                       add_bias(call, bias ? bias : base + column, column, out_dim(proj, weights_->shape), begin, end);
                     }
                   });
}

void Decoder::add_bias(const LinearCall& call, const float* bias, int64_t column, int64_t num_columns, int64_t begin,
                       int64_t end) {
  const int64_t y_stride = group_columns(call.group, weights_->shape);
  backend_.add_bias(call.y + begin * y_stride + column, y_stride, bias, end - begin, num_columns);
}

void Decoder::add_segment(int64_t begin, int64_t end, const std::byte* base, std::span<const LoraProj> projs) {
  segments_.push_back(
      {.row_begin = static_cast<int32_t>(begin), .row_end = static_cast<int32_t>(end), .base = base, .projs = projs});
}

void Decoder::lora(const void* x, int64_t x_stride, float* y, int64_t y_stride) {
  int64_t most = 0;  // ranks of one segment
  for (const LoraSegment& segment : segments_) {
    int64_t ranks = 0;
    for (const LoraProj& proj : segment.projs) ranks += proj.a.num_rows;
    most = std::max(most, ranks);
  }
  LK_CHECK(most <= kMaxGroupRank);
  backend_.lora({.x = x,
                 .act = weights_->act,
                 .x_stride = x_stride,
                 .y = y,
                 .y_stride = y_stride,
                 .segments = segments_,
                 .v = rank_rows_.as<float>(),
                 .v_stride = (most + 15) / 16 * 16});
}

// --- Norms

void Decoder::norm(const float* x, int64_t num_rows, const float* weight, void* y, DType y_dtype) {
  const int64_t dim = weights_->shape.hidden_dim;
  backend_.rms_norm({.x = x,
                     .x_stride = dim,
                     .weight = weight,
                     .y = y,
                     .y_dtype = y_dtype,
                     .y_stride = dim,
                     .num_rows = num_rows,
                     .dim = dim,
                     .eps = static_cast<float>(weights_->config.rms_norm_eps)});
}

void Decoder::input_norm(int64_t layer, const float* weight, const float* ResidentAdapter::Layer::*replaced,
                         const DecoderBatch& batch) {
  const int64_t dim = weights_->shape.hidden_dim;
  for_each_stretch(batch.runs, static_cast<int64_t>(batch.token_ids.size()), norm_of(layer, weight, replaced),
                   [&](const float* w, int64_t begin, int64_t end) {
                     norm(hidden_.as<float>() + begin * dim, end - begin, w, normed_.data() + begin * dim * act_bytes_,
                          weights_->act);
                   });
}

void Decoder::head_norm(float* x, int64_t num_heads, const float* weight,
                        const float* ResidentAdapter::Layer::*replaced, int64_t layer, const DecoderBatch& batch) {
  const int64_t dim = weights_->shape.head_dim;
  for_each_stretch(batch.runs, static_cast<int64_t>(batch.token_ids.size()), norm_of(layer, weight, replaced),
                   [&](const float* w, int64_t begin, int64_t end) {
                     for (int64_t head = 0; head < num_heads; ++head) {
                       float* rows = x + begin * qkv_columns_ + head * dim;
                       backend_.rms_norm({.x = rows,
                                          .x_stride = qkv_columns_,
                                          .weight = w,
                                          .y = rows,
                                          .y_dtype = DType::kF32,
                                          .y_stride = qkv_columns_,
                                          .num_rows = end - begin,
                                          .dim = dim,
                                          .eps = static_cast<float>(weights_->config.rms_norm_eps)});
                     }
                   });
}

void Decoder::final_norm(std::span<const int32_t> rows, std::span<const AdapterRun> runs, void* y, DType y_dtype) {
  const int64_t dim = weights_->shape.hidden_dim;
  const auto num_rows = static_cast<int64_t>(rows.size());
  LK_CHECK(num_rows <= max_logit_rows_);
  float* gathered = gathered_.as<float>();
  backend_.gather_rows(
      {.x = hidden_.as<float>(), .x_stride = dim, .rows = rows, .y = gathered, .y_stride = dim, .dim = dim});
  gather_runs(runs, rows, local_runs_);
  const auto choose = [&](const AdapterRun& run) {
    return run.adapter && run.adapter->final_norm ? run.adapter->final_norm : weights_->final_norm;
  };
  for_each_stretch(local_runs_, num_rows, choose, [&](const float* w, int64_t begin, int64_t end) {
    norm(gathered + begin * dim, end - begin, w, static_cast<std::byte*>(y) + begin * dim * dtype_bytes(y_dtype),
         y_dtype);
  });
}

// --- Results

const float* Decoder::hidden(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  final_norm(rows, runs, gathered_.data(), DType::kF32);  // in place: a row is read before it is written
  return gathered_.as<float>();
}

float* Decoder::logits(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  const ModelShape& shape = weights_->shape;
  const auto num_rows = static_cast<int64_t>(rows.size());
  float* out = logits_.as<float>();
  final_norm(rows, runs, head_input_.data(), weights_->act);
  // One product for all rows that use the base head; adapters with a head of their own get theirs.
  const auto head_of = [&](const AdapterRun& run) {
    return run.adapter && run.adapter->replaced_lm_head ? run.adapter->replaced_lm_head : &weights_->lm_head;
  };
  for_each_stretch(local_runs_, num_rows, head_of, [&](const PackedWeight* w, int64_t begin, int64_t end) {
    backend_.gemm({.x = head_input_.data() + begin * shape.hidden_dim * act_bytes_,
                   .act = weights_->act,
                   .x_stride = shape.hidden_dim,
                   .w = *w,
                   .y = out + begin * logits_stride_,
                   .y_stride = logits_stride_,
                   .num_rows = end - begin});
  });
  segments_.clear();
  const auto adapter_of = [](const AdapterRun& run) { return run.adapter; };
  for_each_stretch(local_runs_, num_rows, adapter_of, [&](const ResidentAdapter* own, int64_t begin, int64_t end) {
    if (own && !own->lm_head.empty()) add_segment(begin, end, pool_base_, own->lm_head);
  });
  lora(head_input_.data(), shape.hidden_dim, out, logits_stride_);
  // A tied head follows the trained rows of the embedding.
  for_each_stretch(local_runs_, num_rows, adapter_of, [&](const ResidentAdapter* own, int64_t begin, int64_t end) {
    if (!own || own->trained_head.n == 0) return;
    backend_.gemm_columns({.x = head_input_.data() + begin * shape.hidden_dim * act_bytes_,
                           .act = weights_->act,
                           .x_stride = shape.hidden_dim,
                           .w = own->trained_head,
                           .columns = own->trained_columns,
                           .y = out + begin * logits_stride_,
                           .y_stride = logits_stride_,
                           .num_rows = end - begin});
  });
  return out;
}

}  // namespace lk
