// SPDX-License-Identifier: Apache-2.0
// Backwards through the norms: the gradient of their input for all rows, and of the weight of each run whose adapter
// trains it.
#pragma once

#include "lk/model/weights.h"
#include "lk/ops/train_ops.h"
#include "lk/train/token_block.h"
#include "lk/train/trainable_adapter.h"

namespace lk {

class NormGradients {
 public:
  NormGradients(const ModelWeights& weights, TrainOps& ops) : weights_(weights), ops_(ops) {}

  // x, dy, dx: f32 [rows of the view, hidden_dim]. dx is added to.
  void input(int64_t layer, const RowView& view, const float* x, const float* dy, float* dx);
  void post(int64_t layer, const RowView& view, const float* x, const float* dy, float* dx);
  // dy becomes dx.
  void final(const RowView& view, const float* x, float* dy);
  // Of the heads of q and k (Qwen3), in place: raw is act [rows, q_dim + kv_dim], dqkv f32 in the product's layout.
  void heads(int64_t layer, const RowView& view, const void* raw, float* dqkv);

 private:
  // Which parameter of an adapter is the norm, -1 = none.
  template <class ParamOf>
  void each_run(const RowView& view, const float* base, const ParamOf& param_of, RmsNormBackwardArgs args);

  const ModelWeights& weights_;
  TrainOps& ops_;
};

}  // namespace lk
