// SPDX-License-Identifier: Apache-2.0
#include "lk/train/norm_gradients.h"

#include <array>

namespace lk {

template <class ParamOf>
void NormGradients::each_run(const RowView& view, const float* base, const ParamOf& param_of,
                             RmsNormBackwardArgs args) {
  const auto* x = static_cast<const std::byte*>(args.x);
  const float* dy = args.dy;
  float* dx = args.dx;
  args.eps = static_cast<float>(weights_.config.rms_norm_eps);
  for (const TokenBlock::Run& run : view.runs) {
    const int param = run.adapter ? param_of(*run.adapter) : -1;
    args.x = x + run.begin * args.x_stride * dtype_bytes(args.x_dtype);
    args.dy = dy + run.begin * args.dy_stride;
    args.dx = dx + run.begin * args.dx_stride;
    args.num_rows = run.end - run.begin;
    args.weight = param >= 0 ? run.adapter->value(param) : base;
    args.weight_gradient = param >= 0 ? run.adapter->gradient(param) : nullptr;
    ops_.rms_norm_backward(args);
  }
}

void NormGradients::input(int64_t layer, const RowView& view, const float* x, const float* dy, float* dx) {
  const int64_t dim = weights_.shape.hidden_dim;
  each_run(view, weights_.layers[static_cast<size_t>(layer)].input_norm,
           [&](const TrainableAdapter& adapter) { return adapter.layer(layer).input_norm; },
           {.x = x, .x_stride = dim, .dy = dy, .dy_stride = dim, .dx = dx, .dx_stride = dim, .dim = dim});
}

void NormGradients::post(int64_t layer, const RowView& view, const float* x, const float* dy, float* dx) {
  const int64_t dim = weights_.shape.hidden_dim;
  each_run(view, weights_.layers[static_cast<size_t>(layer)].post_norm,
           [&](const TrainableAdapter& adapter) { return adapter.layer(layer).post_norm; },
           {.x = x, .x_stride = dim, .dy = dy, .dy_stride = dim, .dx = dx, .dx_stride = dim, .dim = dim});
}

void NormGradients::final(const RowView& view, const float* x, float* dy) {
  const int64_t dim = weights_.shape.hidden_dim;
  each_run(view, weights_.final_norm, [](const TrainableAdapter& adapter) { return adapter.final_norm(); },
           {.x = x, .x_stride = dim, .dy = dy, .dy_stride = dim, .dx = dy, .dx_stride = dim, .add = false, .dim = dim});
}

void NormGradients::heads(int64_t layer, const RowView& view, const void* raw, float* dqkv) {
  struct HeadNorm {
    Proj proj;
    int64_t num_heads, raw_column;
    const float* base;
    int TrainableAdapter::Layer::*own;
  };
  const ModelShape& shape = weights_.shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const std::array<HeadNorm, 2> norms{
      {{Proj::kQ, shape.num_heads, 0, w.q_norm, &TrainableAdapter::Layer::q_norm},
       {Proj::kK, shape.num_kv_heads, shape.q_dim(), w.k_norm, &TrainableAdapter::Layer::k_norm}}};
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  for (const HeadNorm& norm : norms) {
    float* dx = dqkv + group_column(norm.proj, shape);
    each_run(view, norm.base, [&](const TrainableAdapter& adapter) { return adapter.layer(layer).*norm.own; },
             {.x = static_cast<const std::byte*>(raw) + norm.raw_column * dtype_bytes(weights_.act),
              .x_dtype = weights_.act,
              .x_stride = shape.q_dim() + shape.kv_dim(),
              .dy = dx,
              .dy_stride = columns,
              .dx = dx,
              .dx_stride = columns,
              .add = false,
              .heads = norm.num_heads,
              .dim = shape.head_dim});
  }
}

}  // namespace lk
