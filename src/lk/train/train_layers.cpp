// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_layers.h"

#include <algorithm>
#include <cmath>

#include "lk/train/scratch.h"

namespace lk {
const char* to_string(Checkpointing level) {
  switch (level) {
    case Checkpointing::kNone:
      return "none";
    case Checkpointing::kSelective:
      return "selective";
    case Checkpointing::kFull:
      return "full";
  }
  check_failed(__FILE__, __LINE__, "level", "not a Checkpointing");
}

LayerPoint lowest_point(const TrainableAdapter& adapter, int64_t layer) {
  const TrainableAdapter::Layer& own = adapter.layer(layer);
  if (own.input_norm >= 0) return LayerPoint::kInputNorm;
  if (adapter.trains_group(ProjGroup::kQkv, layer)) return LayerPoint::kQkv;
  if (own.q_norm >= 0 || own.k_norm >= 0) return LayerPoint::kHeadNorms;
  if (adapter.trains_group(ProjGroup::kO, layer)) return LayerPoint::kO;
  if (own.post_norm >= 0) return LayerPoint::kPostNorm;
  if (adapter.trains_group(ProjGroup::kGateUp, layer)) return LayerPoint::kGateUp;
  if (adapter.trains_group(ProjGroup::kDown, layer)) return LayerPoint::kDown;
  return LayerPoint::kAbove;
}

// Buffers that the level does not keep are empty.
struct TrainLayers::Kept {
  DeviceBuffer x, x2;        // f32 [rows, hidden_dim] the residual stream before attention and before the MLP
  DeviceBuffer raw;          // act [rows, q_dim + kv_dim] q and k before their norms (Qwen3)
  DeviceBuffer qkv;          // act [rows, qkv columns] q and k rotated; backwards their gradients take their place
  DeviceBuffer attended;     // act [rows, q_dim]
  DeviceBuffer log_sum_exp;  // f32 [rows, num_heads]
  DeviceBuffer gate_up;      // act [rows, gate_up columns]
  std::array<DeviceBuffer, kNumProjGroups> products;  // f32 [rows, rank stride] of the adapters
};

// --- Memory

TrainLayers::TrainLayers(PassTools& tools, int64_t max_rows, int64_t first_kept, Checkpointing level)
    : tools_(tools),
      max_rows_(max_rows),
      first_kept_(first_kept),
      chunk_(std::min(max_rows, kLayerRows)),
      level_(level),
      places_(lay_out()),
      live_(std::make_unique<Kept>()) {
  for (int64_t layer = 0; layer < tools.weights.shape.num_layers; ++layer) kept_.push_back(std::make_unique<Kept>());
}

TrainLayers::~TrainLayers() = default;

TrainLayers::Places TrainLayers::lay_out() const {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t hidden = align_panel(shape.hidden_dim), gate_up = group_columns(ProjGroup::kGateUp, shape);
  const auto rank_bytes = [&](ProjGroup group) { return tools_.linears.rank_stride(static_cast<size_t>(group)) * 4; };
  Places p{};
  ScratchLayout both;
  p.residual = both.take(max_rows_ * std::max(shape.hidden_dim, shape.q_dim()) * 4);
  p.normed = both.take(chunk_ * hidden * tools_.act_bytes);
  p.dy = both.take(chunk_ * hidden * tools_.act_bytes);
  ScratchLayout mlp = both;
  if (level_ != Checkpointing::kNone) {
    p.gate_up = mlp.take(chunk_ * gate_up * tools_.act_bytes);
    p.gate_up_products = mlp.take(chunk_ * rank_bytes(ProjGroup::kGateUp));
    p.down_products = mlp.take(chunk_ * rank_bytes(ProjGroup::kDown));
  }
  p.activated = mlp.take(chunk_ * shape.intermediate_dim * tools_.act_bytes);
  p.wide = mlp.take(chunk_ * std::max({gate_up, shape.intermediate_dim, hidden}) * 4);
  ScratchLayout attention = both;
  p.qkv = attention.take(std::max(max_rows_ * group_columns(ProjGroup::kQkv, shape), chunk_ * hidden) * 4);
  p.bytes = std::max(mlp.used(), attention.used());
  return p;
}

int64_t TrainLayers::max_input_elements() const {
  const ModelShape& shape = tools_.weights.shape;
  return chunk_ * std::max({shape.hidden_dim, shape.q_dim(), shape.intermediate_dim});
}

std::vector<std::pair<DeviceBuffer*, int64_t>> TrainLayers::buffers() {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t rows = max_rows_;
  std::vector<std::pair<DeviceBuffer*, int64_t>> all;
  const auto keep_products = [&](Kept& kept, ProjGroup group) {
    const auto g = static_cast<size_t>(group);
    all.push_back({&kept.products[g], rows * tools_.linears.rank_stride(g) * 4});
  };
  const auto keep_attention = [&](Kept& kept) {
    all.insert(all.end(), {{&kept.qkv, rows * group_columns(ProjGroup::kQkv, shape) * tools_.act_bytes},
                           {&kept.attended, rows * shape.q_dim() * tools_.act_bytes},
                           {&kept.log_sum_exp, rows * shape.num_heads * 4}});
    if (tools_.weights.config.qk_norm)
      all.push_back({&kept.raw, rows * (shape.q_dim() + shape.kv_dim()) * tools_.act_bytes});
    keep_products(kept, ProjGroup::kQkv);
    keep_products(kept, ProjGroup::kO);
  };
  for (int64_t layer = first_kept_; layer < shape.num_layers; ++layer) {
    Kept& kept = *kept_[static_cast<size_t>(layer)];
    if (!loses_input(layer)) all.push_back({&kept.x, rows * shape.hidden_dim * 4});
    if (level_ == Checkpointing::kFull) continue;
    all.push_back({&kept.x2, rows * shape.hidden_dim * 4});
    keep_attention(kept);
    if (level_ == Checkpointing::kSelective) continue;
    all.push_back({&kept.gate_up, rows * group_columns(ProjGroup::kGateUp, shape) * tools_.act_bytes});
    keep_products(kept, ProjGroup::kGateUp);
    keep_products(kept, ProjGroup::kDown);
  }
  if (level_ == Checkpointing::kFull) keep_attention(*live_);
  return all;
}

// Where a layer puts what it keeps. Without a backward pass to come that may be any place.
TrainLayers::Kept& TrainLayers::kept_of(int64_t layer, bool keep) {
  if (level_ == Checkpointing::kFull) return *live_;
  return keep ? *kept_[static_cast<size_t>(layer)] : *kept_.back();
}

// The place of an input that was lost is that of the layer above, which is through with its own by then.
float* TrainLayers::input_of(int64_t layer) {
  return kept_[static_cast<size_t>(loses_input(layer) ? layer + 1 : layer)]->x.as<float>();
}

float* TrainLayers::products(Kept& kept, ProjGroup group, int64_t begin) const {
  const auto g = static_cast<size_t>(group);
  return kept.products[g].as<float>() + begin * tools_.linears.rank_stride(g);
}

TrainLayers::MlpPlace TrainLayers::mlp_place(const Rows& rows, Kept& kept, int64_t begin) const {
  if (level_ != Checkpointing::kNone)
    return {at<std::byte>(rows, places_.gate_up), at<float>(rows, places_.gate_up_products),
            at<float>(rows, places_.down_products)};
  return {row_of(kept.gate_up.data(), begin, group_columns(ProjGroup::kGateUp, tools_.weights.shape), tools_.act_bytes),
          products(kept, ProjGroup::kGateUp, begin), products(kept, ProjGroup::kDown, begin)};
}

// --- Small steps

// f(view of the chunk, its first row).
template <class F>
void TrainLayers::for_each_chunk(const Rows& rows, const F& f) const {
  for (int64_t begin = 0; begin < rows.num_rows(); begin += chunk_)
    f(rows_of(rows.block, begin, std::min(begin + chunk_, rows.num_rows()), rows.drops), begin);
}

void TrainLayers::round(const float* x, int64_t x_stride, void* y, int64_t y_stride, int64_t num_rows, int64_t n) {
  tools_.ops.round_rows({.x = x,
                         .x_stride = x_stride,
                         .y = y,
                         .y_dtype = tools_.weights.act,
                         .y_stride = y_stride,
                         .num_rows = num_rows,
                         .n = n,
                         .padded = align_panel(n)});
}

void TrainLayers::round_qkv(const float* qkv, std::byte* y, int64_t num_rows) {
  const int64_t columns = group_columns(ProjGroup::kQkv, tools_.weights.shape);
  for (Proj proj : projs_of(ProjGroup::kQkv)) {
    const int64_t column = group_column(proj, tools_.weights.shape);
    round(qkv + column, columns, y + column * tools_.act_bytes, columns, num_rows, out_dim(proj, tools_.weights.shape));
  }
}

void TrainLayers::copy(const float* from, float* to, int64_t num_rows) {
  const int64_t dim = tools_.weights.shape.hidden_dim;
  tools_.ops.round_rows({.x = from,
                         .x_stride = dim,
                         .y = to,
                         .y_dtype = DType::kF32,
                         .y_stride = dim,
                         .num_rows = num_rows,
                         .n = dim,
                         .padded = dim});
}

// q and k before their norms are kept rounded, and the forward pass goes on from these values.
void TrainLayers::keep_raw(const RowView& view, float* qkv, std::byte* raw) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t stride = shape.q_dim() + shape.kv_dim(), columns = group_columns(ProjGroup::kQkv, shape);
  int64_t column = 0;
  for (Proj proj : {Proj::kQ, Proj::kK}) {
    float* x = qkv + group_column(proj, shape);
    const int64_t width = out_dim(proj, shape);
    std::byte* kept = raw + column * tools_.act_bytes;
    const auto convert = [&](const void* from, DType from_dtype, int64_t from_stride, void* to, DType to_dtype,
                             int64_t to_stride) {
      tools_.ops.round_rows({.x = from,
                             .x_dtype = from_dtype,
                             .x_stride = from_stride,
                             .y = to,
                             .y_dtype = to_dtype,
                             .y_stride = to_stride,
                             .num_rows = view.num_rows,
                             .n = width,
                             .padded = width});
    };
    convert(x, DType::kF32, columns, kept, tools_.weights.act, stride);
    convert(kept, tools_.weights.act, stride, x, DType::kF32, columns);
    column += width;
  }
}

// --- Forward

void TrainLayers::forward(int64_t layer, const Rows& rows, float* hidden, bool keep) {
  Kept& kept = kept_of(layer, keep);
  if (keep && !loses_input(layer)) copy(hidden, input_of(layer), rows.num_rows());
  forward_attention(layer, rows, kept, hidden);
  if (keep && level_ != Checkpointing::kFull) copy(hidden, kept.x2.as<float>(), rows.num_rows());
  forward_mlp(layer, rows, kept, hidden);
}

void TrainLayers::forward_attention(int64_t layer, const Rows& rows, Kept& kept, float* residual) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t hidden = shape.hidden_dim;
  forward_qkv(layer, rows, kept, residual);
  tools_.ops.block_attention({.in = attention(layer, rows, kept),
                              .y = kept.attended.data(),
                              .y_stride = shape.q_dim(),
                              .log_sum_exp = kept.log_sum_exp.as<float>()});
  float* product = at<float>(rows, places_.qkv);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    tools_.linears.forward(tools_.linears.group(layer, ProjGroup::kO), view,
                           row_of(kept.attended.data(), begin, shape.q_dim(), tools_.act_bytes), product,
                           products(kept, ProjGroup::kO, begin));
    tools_.backend.add(residual + begin * hidden, hidden, product, align_panel(hidden), view.num_rows, hidden);
  });
}

void TrainLayers::forward_qkv(int64_t layer, const Rows& rows, Kept& kept, const float* residual) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  auto* normed = at<std::byte>(rows, places_.normed);
  float* qkv = at<float>(rows, places_.qkv);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    tools_.adapted.norm(&ResidentAdapter::Layer::input_norm, layer, residual + begin * shape.hidden_dim, view.num_rows,
                        view.adapters, normed);
    tools_.linears.forward(tools_.linears.group(layer, ProjGroup::kQkv), view, normed, qkv,
                           products(kept, ProjGroup::kQkv, begin));
    if (tools_.weights.config.qk_norm) {
      keep_raw(view, qkv, row_of(kept.raw.data(), begin, shape.q_dim() + shape.kv_dim(), tools_.act_bytes));
      tools_.adapted.head_norms(layer, qkv, view.num_rows, view.adapters);
    }
    tools_.adapted.rotate(qkv, view.num_rows, rows.cos + angle(begin), rows.sin + angle(begin));
    round_qkv(qkv, row_of(kept.qkv.data(), begin, columns, tools_.act_bytes), view.num_rows);
  });
}

BlockAttention TrainLayers::attention(int64_t layer, const Rows& rows, const Kept& kept) const {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  const auto column = [&](Proj proj) { return kept.qkv.data() + group_column(proj, shape) * tools_.act_bytes; };
  return {.q = column(Proj::kQ),
          .k = column(Proj::kK),
          .v = column(Proj::kV),
          .act = tools_.weights.act,
          .q_stride = columns,
          .k_stride = columns,
          .v_stride = columns,
          .num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim))),
          .window = tools_.weights.config.layer_window[static_cast<size_t>(layer)],
          .sequences = rows.block.samples};
}

// gate, up and silu(gate) up of rows whose norm is in `normed`.
void TrainLayers::forward_gate_up(int64_t layer, const RowView& view, const std::byte* normed, float* wide,
                                  const MlpPlace& place, std::byte* activated) {
  tools_.linears.forward(tools_.linears.group(layer, ProjGroup::kGateUp), view, normed, wide, place.gate_up_products);
  activate(view, wide, place, activated);
}

// activated = silu(gate) up; from the product `x`, or, without one, from what was kept of it.
void TrainLayers::activate(const RowView& view, const float* x, const MlpPlace& place, std::byte* activated) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t gate_up = group_columns(ProjGroup::kGateUp, shape);
  tools_.ops.swiglu_keep({.x = x,
                          .x_stride = gate_up,
                          .up_offset = group_column(Proj::kUp, shape),
                          .padded = gate_up,
                          .kept = place.gate_up,
                          .kept_stride = gate_up,
                          .y = activated,
                          .act = tools_.weights.act,
                          .y_stride = shape.intermediate_dim,
                          .num_rows = view.num_rows,
                          .dim = shape.intermediate_dim});
}

void TrainLayers::forward_mlp(int64_t layer, const Rows& rows, Kept& kept, float* residual) {
  const int64_t hidden = tools_.weights.shape.hidden_dim;
  auto *normed = at<std::byte>(rows, places_.normed), *activated = at<std::byte>(rows, places_.activated);
  float* wide = at<float>(rows, places_.wide);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    const MlpPlace place = mlp_place(rows, kept, begin);
    tools_.adapted.norm(&ResidentAdapter::Layer::post_norm, layer, residual + begin * hidden, view.num_rows,
                        view.adapters, normed);
    forward_gate_up(layer, view, normed, wide, place, activated);
    tools_.linears.forward(tools_.linears.group(layer, ProjGroup::kDown), view, activated, wide, place.down_products);
    tools_.backend.add(residual + begin * hidden, hidden, wide, align_panel(hidden), view.num_rows, hidden);
  });
}

// --- Backward

void TrainLayers::backward(int64_t layer, const Rows& rows, float* dhidden, LayerPoint stop) {
  Kept& kept = kept_of(layer, true);
  float* residual = at<float>(rows, places_.residual);
  const float* x2 = kept.x2.as<float>();
  if (level_ == Checkpointing::kFull) {
    copy(input_of(layer), residual, rows.num_rows());
    forward_attention(layer, rows, kept, residual);
    x2 = residual;
  }
  backward_mlp(layer, rows, kept, x2, dhidden, stop);
  if (stop >= LayerPoint::kPostNorm) return;
  float* dattended = residual;  // which nobody needs any more
  backward_o(layer, rows, kept, dhidden, dattended, stop < LayerPoint::kO);
  if (stop >= LayerPoint::kO) return;
  backward_attention(layer, rows, kept, dattended);
  backward_qkv(layer, rows, kept, dhidden, stop);
}

void TrainLayers::backward_mlp(int64_t layer, const Rows& rows, Kept& kept, const float* x2, float* dhidden,
                               LayerPoint stop) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t gate_up = group_columns(ProjGroup::kGateUp, shape), hidden = shape.hidden_dim;
  const int64_t padded = align_panel(hidden), intermediate = shape.intermediate_dim;
  const LinearGroup down = tools_.linears.group(layer, ProjGroup::kDown);
  auto *normed = at<std::byte>(rows, places_.normed), *activated = at<std::byte>(rows, places_.activated);
  auto* dy = at<std::byte>(rows, places_.dy);
  float* wide = at<float>(rows, places_.wide);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    const MlpPlace place = mlp_place(rows, kept, begin);
    const float* x = x2 + begin * hidden;
    float* dx = dhidden + begin * hidden;
    tools_.adapted.norm(&ResidentAdapter::Layer::post_norm, layer, x, view.num_rows, view.adapters, normed);
    if (level_ == Checkpointing::kNone) {
      activate(view, nullptr, place, activated);
    } else {
      forward_gate_up(layer, view, normed, wide, place, activated);
      tools_.linears.add_deltas(down, view, activated, wide, place.down_products);  // for the products alone
    }
    round(dx, hidden, dy, padded, view.num_rows, hidden);
    tools_.linears.backward(down, view, activated, dy, padded, place.down_products, wide, stop < LayerPoint::kDown);
    if (stop >= LayerPoint::kDown) return;
    // In place: gate and up are not needed again.
    tools_.ops.swiglu_backward({.kept = place.gate_up,
                                .kept_stride = gate_up,
                                .up_offset = group_column(Proj::kUp, shape),
                                .padded = gate_up,
                                .dy = wide,
                                .dy_stride = intermediate,
                                .dx = place.gate_up,
                                .act = tools_.weights.act,
                                .dx_stride = gate_up,
                                .num_rows = view.num_rows,
                                .dim = intermediate});
    tools_.linears.backward(tools_.linears.group(layer, ProjGroup::kGateUp), view, normed, place.gate_up, gate_up,
                            place.gate_up_products, wide, stop < LayerPoint::kGateUp);
    if (stop < LayerPoint::kGateUp) tools_.norms.post(layer, view, x, wide, dx);
  });
}

void TrainLayers::backward_o(int64_t layer, const Rows& rows, Kept& kept, const float* dhidden, float* dattended,
                             bool through) {
  const int64_t hidden = tools_.weights.shape.hidden_dim, padded = align_panel(hidden),
                q_dim = tools_.weights.shape.q_dim();
  auto* dy = at<std::byte>(rows, places_.dy);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    round(dhidden + begin * hidden, hidden, dy, padded, view.num_rows, hidden);
    tools_.linears.backward(tools_.linears.group(layer, ProjGroup::kO), view,
                            row_of(kept.attended.data(), begin, q_dim, tools_.act_bytes), dy, padded,
                            products(kept, ProjGroup::kO, begin), dattended + begin * q_dim, through);
  });
}

void TrainLayers::backward_attention(int64_t layer, const Rows& rows, const Kept& kept, const float* dattended) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  float* dqkv = at<float>(rows, places_.qkv);
  tools_.ops.block_attention_backward({.in = attention(layer, rows, kept),
                                       .y = kept.attended.data(),
                                       .y_stride = shape.q_dim(),
                                       .log_sum_exp = kept.log_sum_exp.as<float>(),
                                       .dy = dattended,
                                       .dy_stride = shape.q_dim(),
                                       .dq = dqkv,
                                       .dk = dqkv + group_column(Proj::kK, shape),
                                       .dv = dqkv + group_column(Proj::kV, shape),
                                       .dq_stride = columns,
                                       .dk_stride = columns,
                                       .dv_stride = columns});
}

void TrainLayers::backward_qkv(int64_t layer, const Rows& rows, Kept& kept, float* dhidden, LayerPoint stop) {
  const ModelShape& shape = tools_.weights.shape;
  const int64_t hidden = shape.hidden_dim, columns = group_columns(ProjGroup::kQkv, shape);
  const float* input = input_of(layer);
  auto* normed = at<std::byte>(rows, places_.normed);
  float* dnormed = at<float>(rows, places_.residual);
  for_each_chunk(rows, [&](const RowView& view, int64_t begin) {
    float* gradient = at<float>(rows, places_.qkv) + begin * columns;
    const float* x = input + begin * hidden;
    tools_.adapted.rotate(gradient, view.num_rows, rows.cos + angle(begin), rows.negative_sin + angle(begin));
    if (tools_.weights.config.qk_norm)
      tools_.norms.heads(layer, view, row_of(kept.raw.data(), begin, shape.q_dim() + shape.kv_dim(), tools_.act_bytes),
                         gradient);
    if (stop == LayerPoint::kHeadNorms) return;
    std::byte* dqkv =
        row_of(kept.qkv.data(), begin, columns, tools_.act_bytes);  // attention is through with q, k and v
    round_qkv(gradient, dqkv, view.num_rows);
    tools_.adapted.norm(&ResidentAdapter::Layer::input_norm, layer, x, view.num_rows, view.adapters, normed);
    tools_.linears.backward(tools_.linears.group(layer, ProjGroup::kQkv), view, normed, dqkv, columns,
                            products(kept, ProjGroup::kQkv, begin), dnormed, stop < LayerPoint::kQkv);
    if (stop < LayerPoint::kQkv) tools_.norms.input(layer, view, x, dnormed, dhidden + begin * hidden);
  });
}

}  // namespace lk
