// SPDX-License-Identifier: Apache-2.0
#include "lk/model/decoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lk {
namespace {

// Rows of the MLP computed at a time: still compute bound, and their products fit the cache.
constexpr int64_t kMlpRows = 256;

// Adds one row of the embedding delta of token `token`: hidden[d] += scaling * sum_k B[d, k] A[k, token].
void add_embedding_delta(const Adapter::EmbeddingDelta& delta, int32_t token, float* hidden) {
  const int64_t hidden_dim = delta.b.dim(0), vocab = delta.a.dim(1);
  const int64_t elem = dtype_bytes(delta.a.dtype());
  std::vector<float> column(static_cast<size_t>(delta.rank)), row(static_cast<size_t>(delta.rank));
  for (int64_t k = 0; k < delta.rank; ++k)
    convert(static_cast<const std::byte*>(delta.a.raw()) + (k * vocab + token) * elem, delta.a.dtype(),
            &column[static_cast<size_t>(k)], DType::kF32, 1);
  for (int64_t d = 0; d < hidden_dim; ++d) {
    convert(delta.b.row(d), delta.b.dtype(), row.data(), DType::kF32, delta.rank);
    double sum = 0;
    for (size_t k = 0; k < row.size(); ++k) sum += static_cast<double>(row[k]) * column[k];
    hidden[d] += static_cast<float>(delta.scaling * sum);
  }
}

void embed_token(const ModelWeights& weights, const ResidentAdapter* adapter, int32_t token, float* hidden) {
  const TensorView* table = &weights.embedding;
  int64_t row = token;
  const Adapter* host = adapter ? adapter->host.get() : nullptr;
  if (host) {
    if (const auto it = host->replaced.find("model.embed_tokens.weight"); it != host->replaced.end())
      table = &it->second;
    if (const auto it = adapter->trained_rows.find(token); it != adapter->trained_rows.end()) {
      table = &host->trained_token_rows;
      row = it->second;
    }
  }
  convert(table->row(row), table->dtype(), hidden, DType::kF32, weights.config.hidden_dim);
  if (host && host->embedding) add_embedding_delta(*host->embedding, token, hidden);
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const ModelWeights> weights, Backend& backend, int64_t max_rows,
                 int64_t max_logit_rows)
    : weights_(std::move(weights)), backend_(backend), max_rows_(max_rows), max_logit_rows_(max_logit_rows) {
  const ModelConfig& c = weights_->config;
  act_bytes_ = dtype_bytes(weights_->act);
  kv_bytes_ = kPageTokens * c.kv_dim() * act_bytes_;
  qkv_columns_ = group_columns(ProjGroup::kQkv, c);
  gate_up_columns_ = group_columns(ProjGroup::kGateUp, c);
  product_columns_ = align_panel(c.hidden_dim);
  logits_stride_ = align_panel(c.vocab_size);
  hidden_ = Buffer(max_rows * c.hidden_dim * 4);
  normed_ = Buffer(max_rows * c.hidden_dim * act_bytes_);
  qkv_ = Buffer(max_rows * qkv_columns_ * 4);
  attended_ = Buffer(max_rows * c.q_dim() * act_bytes_);
  gate_up_ = Buffer(std::min(max_rows, kMlpRows) * gate_up_columns_ * 4);
  activated_ = Buffer(std::min(max_rows, kMlpRows) * c.intermediate_dim * act_bytes_);
  product_ = Buffer(max_rows * product_columns_ * 4);
  head_input_ = Buffer(max_logit_rows * c.hidden_dim * act_bytes_);
  gathered_ = Buffer(max_logit_rows * c.hidden_dim * 4);
  logits_ = Buffer(max_logit_rows * logits_stride_ * 4);
}

void Decoder::reserve_rank(int64_t sum_of_ranks) {
  if (sum_of_ranks <= rank_capacity_) return;
  rank_capacity_ = (sum_of_ranks + 15) / 16 * 16;
  rank_rows_ = Buffer(std::max(max_rows_, max_logit_rows_) * rank_capacity_ * 4);
}

void Decoder::forward(const DecoderBatch& batch, const std::function<void()>& between_layers) {
  LK_CHECK(static_cast<int64_t>(batch.token_ids.size()) <= max_rows_ && pool_base_ != nullptr);
  subtract_from_ = batch.subtract_from;
  subtract_ = batch.subtract;
  embed(batch);
  for (int64_t layer = 0; layer < weights_->config.num_layers; ++layer) {
    attention_block(layer, batch);
    mlp_block(layer, batch);
    if (between_layers) between_layers();
  }
}

void Decoder::embed(const DecoderBatch& batch) {
  const int64_t dim = weights_->config.hidden_dim;
  for (const AdapterRun& run : batch.runs)
    for (int64_t row = run.row_begin; row < run.row_end; ++row)
      embed_token(*weights_, run.adapter, batch.token_ids[static_cast<size_t>(row)], hidden_.as<float>() + row * dim);
}

void Decoder::attention_block(int64_t layer, const DecoderBatch& batch) {
  const ModelConfig& c = weights_->config;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  float* hidden = hidden_.as<float>();
  float* q = qkv_.as<float>();
  float* k = q + group_column(Proj::kK, c);
  float* v = q + group_column(Proj::kV, c);

  norm(hidden, w.input_norm, &ResidentAdapter::Layer::input_norm, layer, batch.runs, num_rows);
  linear(layer, ProjGroup::kQkv, normed_.data(), c.hidden_dim, q, batch.runs, num_rows);
  if (c.qk_norm) {
    head_norm(q, qkv_columns_, c.num_heads, w.q_norm, &ResidentAdapter::Layer::q_norm, layer, batch.runs);
    head_norm(k, qkv_columns_, c.num_kv_heads, w.k_norm, &ResidentAdapter::Layer::k_norm, layer, batch.runs);
  }
  backend_.rope({.x = q,
                 .x_stride = qkv_columns_,
                 .num_rows = num_rows,
                 .num_heads = c.num_heads,
                 .head_dim = c.head_dim,
                 .cos = batch.cos,
                 .sin = batch.sin});
  backend_.rope({.x = k,
                 .x_stride = qkv_columns_,
                 .num_rows = num_rows,
                 .num_heads = c.num_kv_heads,
                 .head_dim = c.head_dim,
                 .cos = batch.cos,
                 .sin = batch.sin});
  const KvLayer kv{.base = pool_base_ + layer * slice_bytes(),
                   .page_stride = page_bytes(),
                   .v_offset = kv_bytes_,
                   .dtype = weights_->act,
                   .num_kv_heads = c.num_kv_heads,
                   .head_dim = c.head_dim};
  backend_.store_kv({.k = k,
                     .v = v,
                     .k_stride = qkv_columns_,
                     .v_stride = qkv_columns_,
                     .slots = batch.slots.data(),
                     .num_rows = num_rows,
                     .kv = kv});
  backend_.attention({.q = q,
                      .q_stride = qkv_columns_,
                      .y = attended_.data(),
                      .y_stride = c.q_dim(),
                      .num_heads = c.num_heads,
                      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
                      .window = c.layer_window[static_cast<size_t>(layer)],
                      .seqs = batch.sequences,
                      .kv = kv});
  float* product = product_.as<float>();
  linear(layer, ProjGroup::kO, attended_.data(), c.q_dim(), product, batch.runs, num_rows);
  backend_.add(hidden, c.hidden_dim, product, product_columns_, num_rows, c.hidden_dim);
}

void Decoder::mlp_block(int64_t layer, const DecoderBatch& batch) {
  const ModelConfig& c = weights_->config;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  float* hidden = hidden_.as<float>();
  norm(hidden, w.post_norm, &ResidentAdapter::Layer::post_norm, layer, batch.runs, num_rows);
  // In blocks of rows, so that the widest product (f32, 2 x intermediate) is still in the cache when LoRA and swiglu
  // read it.
  for (int64_t begin = 0; begin < num_rows; begin += kMlpRows) {
    const int64_t end = std::min(num_rows, begin + kMlpRows);
    clip_runs(batch.runs, begin, end);
    linear(layer, ProjGroup::kGateUp, act_row(normed_.data(), c.hidden_dim, begin), c.hidden_dim, gate_up_.as<float>(),
           block_runs_, end - begin);
    backend_.swiglu({.x = gate_up_.as<float>(),
                     .x_stride = gate_up_columns_,
                     .up_offset = group_column(Proj::kUp, c),
                     .y = activated_.data(),
                     .y_dtype = weights_->act,
                     .y_stride = c.intermediate_dim,
                     .num_rows = end - begin,
                     .dim = c.intermediate_dim});
    linear(layer, ProjGroup::kDown, activated_.data(), c.intermediate_dim, product_.as<float>(), block_runs_,
           end - begin);
    backend_.add(hidden + begin * c.hidden_dim, c.hidden_dim, product_.as<float>(), product_columns_, end - begin,
                 c.hidden_dim);
  }
}

// block_runs_ = the parts of `runs` in rows [begin, end), counted from begin.
void Decoder::clip_runs(std::span<const AdapterRun> runs, int64_t begin, int64_t end) {
  block_runs_.clear();
  for (const AdapterRun& run : runs) {
    const auto first = static_cast<int32_t>(std::max<int64_t>(run.row_begin, begin) - begin);
    const auto last = static_cast<int32_t>(std::min<int64_t>(run.row_end, end) - begin);
    if (first < last) block_runs_.push_back({first, last, run.adapter, run.merged});
  }
}

void Decoder::linear(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
                     std::span<const AdapterRun> runs, int64_t num_rows) {
  const auto g = static_cast<size_t>(group);
  const int64_t y_stride = group_columns(group, weights_->config);
  // Rows of adapters that replace a matrix of this group go through their own, merged ones through W'; all others share
  // one product.
  const PackedWeight& shared = subtracts(layer, group) ? subtract_from_->layers[static_cast<size_t>(layer)].linear[g]
                                                       : weights_->layers[static_cast<size_t>(layer)].linear[g];
  int64_t begin = 0;
  for (const AdapterRun& run : runs) {
    if (!run.adapter) continue;
    const PackedWeight* merged = run.merged ? &run.merged->layers[static_cast<size_t>(layer)].linear[g] : nullptr;
    if (merged && merged->data == shared.data) continue;
    if (merged && merged->data) {
      product(shared, group, x, x_stride, y, begin, run.row_begin);
      product(*merged, group, x, x_stride, y, run.row_begin, run.row_end);
    } else if (run.adapter->layers[static_cast<size_t>(layer)].replaces(group)) {
      product(shared, group, x, x_stride, y, begin, run.row_begin);
      replaced_linear(layer, group, *run.adapter, x, x_stride, y, run.row_begin, run.row_end);
    } else {
      continue;
    }
    begin = run.row_end;
  }
  product(shared, group, x, x_stride, y, begin, num_rows);
  if (subtracts(layer, group)) subtract_delta(layer, group, x, x_stride, y, runs);
  add_deltas(layer, group, x, x_stride, y, runs);
  // Outside the LoRA and DoRA terms, as PEFT adds it.
  if (const float* bias = weights_->layers[static_cast<size_t>(layer)].bias[g]) {
    int64_t first = 0;
    const auto add_base_bias = [&](int64_t end) {
      backend_.add_bias(y + first * y_stride, y_stride, bias, end - first, y_stride);
    };
    for (const AdapterRun& run : runs) {
      if (!run.adapter || !run.adapter->layers[static_cast<size_t>(layer)].replaces(group)) continue;
      add_base_bias(run.row_begin);
      for (Proj proj : projs_of(group)) {
        const int64_t column = group_column(proj, weights_->config);
        const float* own = run.adapter->layers[static_cast<size_t>(layer)].replaced_bias[static_cast<size_t>(proj)];
        backend_.add_bias(y + run.row_begin * y_stride + column, y_stride, own ? own : bias + column,
                          run.row_end - run.row_begin, out_dim(proj, weights_->config));
      }
      first = run.row_end;
    }
    add_base_bias(num_rows);
  }
}

void Decoder::add_deltas(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
                         std::span<const AdapterRun> runs) {
  const auto g = static_cast<size_t>(group);
  const int64_t y_stride = group_columns(group, weights_->config);
  segments_.clear();
  for (const AdapterRun& run : runs) {
    if (!run.adapter) continue;
    if (run.merged && run.merged->layers[static_cast<size_t>(layer)].linear[g].data) {
      if (const float* bias = run.merged->layers[static_cast<size_t>(layer)].bias[g])
        backend_.add_bias(y + run.row_begin * y_stride, y_stride, bias, run.row_end - run.row_begin, y_stride);
      continue;
    }
    const std::vector<LoraProj>& projs = run.adapter->layers[static_cast<size_t>(layer)].groups[g];
    if (projs.empty()) continue;
    segments_.push_back({.row_begin = run.row_begin,
                         .row_end = run.row_end,
                         .base = pool_base_ + layer * slice_bytes(),
                         .projs = projs});
  }
  lora(x, x_stride, y, y_stride);
}

bool Decoder::subtracts(int64_t layer, ProjGroup group) const {
  return subtract_from_ && subtract_ &&
         subtract_from_->layers[static_cast<size_t>(layer)].subtractable[static_cast<size_t>(group)];
}

void Decoder::subtract_delta(int64_t layer, ProjGroup group, const void* x, int64_t x_stride, float* y,
                             std::span<const AdapterRun> runs) {
  std::vector<LoraProj>& minus = minus_[static_cast<size_t>(group)];
  minus = subtract_->layers[static_cast<size_t>(layer)].groups[static_cast<size_t>(group)];
  for (LoraProj& proj : minus) proj.scaling = -proj.scaling;
  segments_.clear();
  for (const AdapterRun& run : runs) {
    if (run.adapter == subtract_) continue;
    // Whoever replaces a matrix of this group was not part of the shared product.
    if (run.adapter && run.adapter->layers[static_cast<size_t>(layer)].replaces(group)) continue;
    segments_.push_back({.row_begin = run.row_begin,
                         .row_end = run.row_end,
                         .base = pool_base_ + layer * slice_bytes(),
                         .projs = minus});
  }
  lora(x, x_stride, y, group_columns(group, weights_->config));
}

void Decoder::lora(const void* x, int64_t x_stride, float* y, int64_t y_stride) {
  if (segments_.empty()) return;
  const auto begin = std::chrono::steady_clock::now();
  backend_.lora({.x = x,
                 .act = weights_->act,
                 .x_stride = x_stride,
                 .y = y,
                 .y_stride = y_stride,
                 .segments = segments_,
                 .v = rank_rows_.as<float>(),
                 .v_stride = rank_capacity_});
  lora_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void Decoder::product(const PackedWeight& w, ProjGroup group, const void* x, int64_t x_stride, float* y, int64_t begin,
                      int64_t end) {
  const int64_t y_stride = group_columns(group, weights_->config);
  backend_.gemm({.x = act_row(x, x_stride, begin),
                 .x_stride = x_stride,
                 .w = w,
                 .y = y + begin * y_stride,
                 .y_stride = y_stride,
                 .num_rows = end - begin});
}

void Decoder::replaced_linear(int64_t layer, ProjGroup group, const ResidentAdapter& adapter, const void* x,
                              int64_t x_stride, float* y, int64_t begin, int64_t end) {
  const ModelConfig& c = weights_->config;
  const int64_t y_stride = group_columns(group, c);
  const PackedWeight& base = weights_->layers[static_cast<size_t>(layer)].linear[static_cast<size_t>(group)];
  for (Proj proj : projs_of(group)) {
    const int64_t column = group_column(proj, c);
    PackedWeight w{.format = base.format,
                   .n = out_dim(proj, c),
                   .k = base.k,
                   .data = static_cast<const std::byte*>(base.data) + packed_weight_bytes(base.format, column, base.k)};
    if (const PackedWeight* own = adapter.layers[static_cast<size_t>(layer)].replaced[static_cast<size_t>(proj)])
      w = *own;
    backend_.gemm({.x = act_row(x, x_stride, begin),
                   .x_stride = x_stride,
                   .w = w,
                   .y = y + begin * y_stride + column,
                   .y_stride = y_stride,
                   .num_rows = end - begin});
  }
}

void Decoder::norm(const float* x, const float* weight, const float* ResidentAdapter::Layer::*replaced, int64_t layer,
                   std::span<const AdapterRun> runs, int64_t num_rows) {
  const int64_t dim = weights_->config.hidden_dim;
  const auto apply = [&](const float* w, int64_t begin, int64_t end) {
    backend_.rms_norm({.x = x + begin * dim,
                       .x_stride = dim,
                       .weight = w,
                       .y = normed_.data() + begin * dim * act_bytes_,
                       .y_dtype = weights_->act,
                       .y_stride = dim,
                       .num_rows = end - begin,
                       .dim = dim,
                       .eps = static_cast<float>(weights_->config.rms_norm_eps)});
  };
  int64_t begin = 0;
  for (const AdapterRun& run : runs) {
    const float* own = run.adapter ? run.adapter->layers[static_cast<size_t>(layer)].*replaced : nullptr;
    if (!own) continue;
    apply(weight, begin, run.row_begin);
    apply(own, run.row_begin, run.row_end);
    begin = run.row_end;
  }
  apply(weight, begin, num_rows);
}

void Decoder::head_norm(float* x, int64_t x_stride, int64_t num_heads, const float* weight,
                        const float* ResidentAdapter::Layer::*replaced, int64_t layer,
                        std::span<const AdapterRun> runs) {
  const int64_t dim = weights_->config.head_dim;
  for (const AdapterRun& run : runs) {
    const float* own = run.adapter ? run.adapter->layers[static_cast<size_t>(layer)].*replaced : nullptr;
    for (int64_t head = 0; head < num_heads; ++head) {
      float* rows = x + run.row_begin * x_stride + head * dim;
      backend_.rms_norm({.x = rows,
                         .x_stride = x_stride,
                         .weight = own ? own : weight,
                         .y = rows,
                         .y_dtype = DType::kF32,
                         .y_stride = x_stride,
                         .num_rows = run.row_end - run.row_begin,
                         .dim = dim,
                         .eps = static_cast<float>(weights_->config.rms_norm_eps)});
    }
  }
}

void Decoder::final_norm(std::span<const int32_t> rows, std::span<const AdapterRun> runs, void* y, DType y_dtype) {
  const ModelConfig& c = weights_->config;
  const auto num_rows = static_cast<int64_t>(rows.size());
  LK_CHECK(num_rows <= max_logit_rows_);
  float* gathered = gathered_.as<float>();
  for (int64_t i = 0; i < num_rows; ++i)
    std::copy_n(hidden_.as<float>() + rows[static_cast<size_t>(i)] * c.hidden_dim, c.hidden_dim,
                gathered + i * c.hidden_dim);
  int64_t begin = 0;
  for (const AdapterRun& run : runs) {
    int64_t end = begin;
    while (end < num_rows && rows[static_cast<size_t>(end)] < run.row_end) ++end;
    if (begin == end) continue;
    backend_.rms_norm(
        {.x = gathered + begin * c.hidden_dim,
         .x_stride = c.hidden_dim,
         .weight = run.adapter && run.adapter->final_norm ? run.adapter->final_norm : weights_->final_norm,
         .y = static_cast<std::byte*>(y) + begin * c.hidden_dim * dtype_bytes(y_dtype),
         .y_dtype = y_dtype,
         .y_stride = c.hidden_dim,
         .num_rows = end - begin,
         .dim = c.hidden_dim,
         .eps = static_cast<float>(c.rms_norm_eps)});
    begin = end;
  }
}

const float* Decoder::hidden(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  final_norm(rows, runs, gathered_.data(), DType::kF32);  // in place: a row is read before it is written
  return gathered_.as<float>();
}

const float* Decoder::logits(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  const ModelConfig& c = weights_->config;
  const auto num_rows = static_cast<int64_t>(rows.size());
  final_norm(rows, runs, head_input_.data(), weights_->act);
  float* out = logits_.as<float>();
  segments_.clear();
  int64_t begin = 0;
  for (const AdapterRun& run : runs) {
    int64_t end = begin;
    while (end < num_rows && rows[static_cast<size_t>(end)] < run.row_end) ++end;
    if (begin == end) continue;
    const ResidentAdapter* adapter = run.adapter;
    if (adapter && !adapter->lm_head.empty())
      segments_.push_back({.row_begin = static_cast<int32_t>(begin),
                           .row_end = static_cast<int32_t>(end),
                           .base = pool_base_,
                           .projs = adapter->lm_head});
    begin = end;
  }
  const auto head = [&](const PackedWeight& w, int64_t first, int64_t last) {
    backend_.gemm({.x = head_input_.data() + first * c.hidden_dim * act_bytes_,
                   .x_stride = c.hidden_dim,
                   .w = w,
                   .y = out + first * logits_stride_,
                   .y_stride = logits_stride_,
                   .num_rows = last - first});
  };
  // One product for all rows that use the base head; adapters with a head of their own get theirs.
  int64_t shared = 0, row = 0;
  for (const AdapterRun& run : runs) {
    const int64_t first = row;
    while (row < num_rows && rows[static_cast<size_t>(row)] < run.row_end) ++row;
    if (first == row || !run.adapter || !run.adapter->replaced_lm_head) continue;
    head(weights_->lm_head, shared, first);
    head(*run.adapter->replaced_lm_head, first, row);
    shared = row;
  }
  head(weights_->lm_head, shared, num_rows);
  backend_.lora({.x = head_input_.data(),
                 .act = weights_->act,
                 .x_stride = c.hidden_dim,
                 .y = out,
                 .y_stride = logits_stride_,
                 .segments = segments_,
                 .v = rank_rows_.as<float>(),
                 .v_stride = rank_capacity_});
  if (!c.tie_word_embeddings) return out;
  // A tied head follows the trained rows of the embedding.
  row = 0;
  for (const AdapterRun& run : runs) {
    for (; row < num_rows && rows[static_cast<size_t>(row)] < run.row_end; ++row) {
      if (!run.adapter) continue;
      for (const auto& [token, index] : run.adapter->trained_rows) {
        std::vector<float> weight(static_cast<size_t>(c.hidden_dim)), input(static_cast<size_t>(c.hidden_dim));
        convert(run.adapter->host->trained_token_rows.row(index), run.adapter->host->trained_token_rows.dtype(),
                weight.data(), DType::kF32, c.hidden_dim);
        convert(head_input_.data() + row * c.hidden_dim * act_bytes_, weights_->act, input.data(), DType::kF32,
                c.hidden_dim);
        double sum = 0;
        for (size_t d = 0; d < weight.size(); ++d) sum += static_cast<double>(weight[d]) * input[d];
        out[row * logits_stride_ + token] = static_cast<float>(sum);
      }
    }
  }
  return out;
}

}  // namespace lk
