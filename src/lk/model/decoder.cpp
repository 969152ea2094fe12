// SPDX-License-Identifier: Apache-2.0
#include "lk/model/decoder.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Rows of the MLP computed at a time: still compute bound, and their products fit the cache.
constexpr int64_t kMlpRows = 256;

// So many rows of logits have memory even where fewer are computed at a time: room for a larger vocabulary.
constexpr int64_t kMinLogitRows = 4;

}  // namespace

Decoder::Decoder(std::shared_ptr<const ModelWeights> weights, Backend& backend, int64_t max_rows,
                 int64_t max_logit_rows, Collective* collective)
    : weights_(std::move(weights)),
      backend_(backend),
      ops_(*weights_, backend, std::max(max_rows, max_logit_rows), collective),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows),
      num_head_rows_(max_logit_rows) {
  LK_CHECK(collective ? collective->size() == weights_->rank.size : weights_->rank.alone());
  const ModelShape& shape = weights_->shape;
  act_bytes_ = dtype_bytes(weights_->act);
  kv_bytes_ = kPageTokens * shape.kv_dim() * act_bytes_;
  qkv_columns_ = group_columns(ProjGroup::kQkv, shape);
  gate_up_columns_ = group_columns(ProjGroup::kGateUp, shape);
  product_columns_ = align_panel(shape.hidden_dim);
  logits_stride_ = align_panel(shape.vocab_size);
  for (const auto& [buffer, bytes] : buffers(shape, weights_->act, max_rows, max_logit_rows, weights_->rank.size))
    this->*buffer = backend.allocate(bytes);
  local_runs_.reserve(static_cast<size_t>(max_rows));
}

std::vector<std::pair<DeviceBuffer Decoder::*, int64_t>> Decoder::buffers(const ModelShape& shape, DType act,
                                                                          int64_t max_rows, int64_t max_logit_rows,
                                                                          int num_ranks) {
  const int64_t elem = dtype_bytes(act), mlp_rows = std::min(max_rows, kMlpRows);
  const int64_t product = max_rows * align_panel(shape.hidden_dim) * 4;
  const int64_t rank_rows = std::max(max_rows, max_logit_rows) * kMaxGroupRank * 4;
  return {{&Decoder::slots_, max_rows * 8},
          {&Decoder::cos_, max_rows * shape.head_dim / 2 * 4},
          {&Decoder::sin_, max_rows * shape.head_dim / 2 * 4},
          {&Decoder::hidden_, max_rows * shape.hidden_dim * 4},
          {&Decoder::normed_, max_rows * shape.hidden_dim * elem},
          {&Decoder::qkv_, max_rows * group_columns(ProjGroup::kQkv, shape) * 4},
          {&Decoder::attended_, max_rows * shape.q_dim() * elem},
          {&Decoder::gate_up_, mlp_rows * group_columns(ProjGroup::kGateUp, shape) * 4},
          {&Decoder::activated_, mlp_rows * shape.intermediate_dim * elem},
          {&Decoder::product_, product},
          {&Decoder::rank_rows_, rank_rows},
          {&Decoder::product_parts_, num_ranks > 1 ? 2 * product : 0},
          {&Decoder::rank_rows_parts_, num_ranks > 1 ? 2 * rank_rows : 0},
          {&Decoder::head_input_, max_logit_rows * shape.hidden_dim * elem},
          {&Decoder::gathered_, max_logit_rows * shape.hidden_dim * 4},
          {&Decoder::logits_, num_logits(shape, max_logit_rows) * 4}};
}

int64_t Decoder::num_logits(const ModelShape& shape, int64_t max_logit_rows) {
  if (max_logit_rows == 0) return 0;  // of a rank that has no head
  return std::max(max_logit_rows, kMinLogitRows) * align_panel(shape.vocab_size);
}

int64_t Decoder::buffer_bytes(const ModelShape& shape, DType act, int64_t max_rows, int64_t max_logit_rows,
                              int num_ranks) {
  int64_t total = 0;
  for (const auto& [buffer, bytes] : buffers(shape, act, max_rows, max_logit_rows, num_ranks)) total += bytes;
  return total;
}

bool Decoder::fits_vocabulary(int64_t num_tokens) const {
  return align_panel(num_tokens) <= num_logits(weights_->shape, num_head_rows_);
}

void Decoder::set_vocabulary(int64_t num_tokens) {
  LK_CHECK(fits_vocabulary(num_tokens));
  logits_stride_ = align_panel(std::max(num_tokens, weights_->shape.vocab_size));
  max_logit_rows_ = std::min(num_head_rows_, num_logits(weights_->shape, num_head_rows_) / logits_stride_);
}

void Decoder::forward(const DecoderBatch& batch, const std::function<void()>& between_layers) {
  LK_CHECK(static_cast<int64_t>(batch.token_ids.size()) <= max_rows_ && pool_base_ != nullptr);
  backend_.upload(slots_.as<int64_t>(), batch.slots);
  backend_.upload(cos_.as<float>(), batch.cos);
  backend_.upload(sin_.as<float>(), batch.sin);
  ops_.embed(batch.token_ids, batch.runs, hidden_.as<float>());
  for (int64_t layer = 0; layer < weights_->shape.num_layers; ++layer) {
    attention_block(layer, batch);
    mlp_block(layer, batch);
    if (between_layers) between_layers();
  }
}

void Decoder::attention_block(int64_t layer, const DecoderBatch& batch) {
  const ModelShape& shape = weights_->shape;
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  float* q = qkv_.as<float>();
  float* k = q + group_column(Proj::kK, shape);
  float* v = q + group_column(Proj::kV, shape);

  ops_.norm(&ResidentAdapter::Layer::input_norm, layer, hidden_.as<float>(), num_rows, batch.runs, normed_.data());
  linear({.layer = layer,
          .group = ProjGroup::kQkv,
          .x = normed_.data(),
          .x_stride = shape.hidden_dim,
          .y = q,
          .num_rows = num_rows,
          .runs = batch.runs});
  if (weights_->config.qk_norm) ops_.head_norms(layer, q, num_rows, batch.runs);
  ops_.rotate(q, num_rows, cos_.as<float>(), sin_.as<float>());
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
  ops_.norm(&ResidentAdapter::Layer::post_norm, layer, hidden_.as<float>(), num_rows, batch.runs, normed_.data());
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

void Decoder::linear(LinearCall call) {
  call.rank_rows = rank_rows_.as<float>();
  call.rank_stride = AdaptedOps::rank_stride_of(call);
  LK_CHECK(call.rank_stride <= kMaxGroupRank);
  if (!weights_->rank.alone() && call.layer != LinearCall::kHead && divides_inputs(projs_of(call.group)[0])) {
    call.y_part = product_parts_.as<float>() + next_part_ * (product_parts_.size_bytes() / 8);
    call.rank_rows_part = rank_rows_parts_.as<float>() + next_part_ * (rank_rows_parts_.size_bytes() / 8);
    next_part_ = 1 - next_part_;
  }
  ops_.linear(call);
}

// --- Results

void Decoder::final_norm(std::span<const int32_t> rows, std::span<const AdapterRun> runs, void* y, DType y_dtype) {
  const int64_t dim = weights_->shape.hidden_dim;
  const auto num_rows = static_cast<int64_t>(rows.size());
  LK_CHECK(num_rows <= max_logit_rows_);
  float* gathered = gathered_.as<float>();
  backend_.gather_rows(
      {.x = hidden_.as<float>(), .x_stride = dim, .rows = rows, .y = gathered, .y_stride = dim, .dim = dim});
  gather_runs(runs, rows, local_runs_);
  ops_.final_norm(gathered, num_rows, local_runs_, y, y_dtype);
}

const float* Decoder::hidden(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  final_norm(rows, runs, gathered_.data(), DType::kF32);  // in place: a row is read before it is written
  return gathered_.as<float>();
}

float* Decoder::logits(std::span<const int32_t> rows, std::span<const AdapterRun> runs) {
  const ModelShape& shape = weights_->shape;
  float* out = logits_.as<float>();
  final_norm(rows, runs, head_input_.data(), weights_->act);
  linear({.x = head_input_.data(),
          .x_stride = shape.hidden_dim,
          .y = out,
          .head_stride = logits_stride_,
          .num_rows = static_cast<int64_t>(rows.size()),
          .runs = local_runs_});
  return out;
}

}  // namespace lk
