// SPDX-License-Identifier: Apache-2.0
// TrainParams: the parameters of one job, f32 ("masters"), each with a gradient and AdamW's two moments: four arrays of
// device memory in which they lie one after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/weight_names.h"
#include "lk/ops/backend.h"
#include "lk/ops/train_ops.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

// What of a module a parameter is. The order is that of the checkpoint's names.
enum class ParamKind : uint8_t {
  kA,          // rank rows [rank, in]; of an embedding [rank, vocab_size]
  kB,          // rank rows [rank, out]; of an embedding [dim, rank]
  kBias,       // of B, [out]
  kMagnitude,  // DoRA, [out]
  kSigma,      // MultiLoRA's scaling vectors, [modules, out]
  kWeight,     // of a norm [dim], a head or an embedding [vocab_size, dim]
  kTokens,     // trained rows of the embedding [ids, dim]
  kSparse,     // values on a mask [1, nnz]
};
const char* to_string(ParamKind kind);  // "lora_A" ...

struct Param {
  ModuleId module;
  ParamKind kind = ParamKind::kA;
  int64_t rows = 0, cols = 0;  // of value
  int64_t trained_rows = 0;    // the first ones; the rest never change
  int64_t state_rows = 0;      // the first ones: those with a gradient and moments
  // Of the first element in the array of values, and in those of gradients and moments; multiples of 16.
  int64_t offset = 0, state_offset = 0;
  int64_t size() const { return rows * cols; }
  int64_t trained_size() const { return trained_rows * cols; }
  int64_t state_size() const { return state_rows * cols; }
  bool is_matrix() const {
    return kind == ParamKind::kA || kind == ParamKind::kB || kind == ParamKind::kTokens || kind == ParamKind::kSparse ||
           (kind == ParamKind::kWeight && module.is_vocabulary());
  }
  std::string name() const;  // "model.layers.0.self_attn.q_proj.lora_A"
};

// The dials of AdamW for one step.
struct AdamwStep {
  double rate = 0;  // of this step
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double decay = 0;         // of matrices; vectors (norms, biases, magnitudes, sigma) do not decay
  double b_rate_ratio = 1;  // LoRA+ (arXiv:2402.12354): B's rate over A's
  double clip = 0;          // largest norm of the gradient, 0 = any
  double proximal = 0;      // FedProx: pulls parameters towards their first values; Requires: keep_anchor()
};
struct StepReport {
  bool finite = false;  // otherwise no parameter was changed
  double gradient_norm = 0;
};

class TrainParams {
 public:
  explicit TrainParams(Backend& backend) : backend_(backend), ops_(backend.train_ops()) {}

  // --- Until allocate(): what there is, on the host. All return or take the index of a parameter.
  struct Rows {
    int64_t all, trained, state;
  };
  int add(ModuleId module, ParamKind kind, const Rows& rows, int64_t cols);  // of zeros
  int add(ModuleId module, ParamKind kind, int64_t rows, int64_t cols) {
    return add(module, kind, Rows{rows, rows, rows}, cols);
  }
  void set(int index, const TensorView& values);
  void set_transposed(int index, const TensorView& values);
  const std::vector<float>& initial(int index) const { return initial_[static_cast<size_t>(index)]; }

  const std::vector<Param>& all() const { return params_; }
  const Param& at(int index) const { return params_[static_cast<size_t>(index)]; }
  // Of the array of values, and of each of the others, in which the params lie at their offsets.
  int64_t num_elements() const { return num_elements_; }
  int64_t num_states() const { return num_states_; }
  int64_t num_trained() const;
  int64_t bytes() const { return num_elements_ * 4 + 3 * num_states_ * 4; }

  // Takes device memory for all four arrays; the host's copies are given back.
  Status allocate();

  // --- From then on
  float* values() { return values_.as<float>(); }
  float* gradients() { return gradients_.as<float>(); }
  float* first_moments() { return moments1_.as<float>(); }
  float* second_moments() { return moments2_.as<float>(); }
  float* value(int index) { return values() + at(index).offset; }
  const float* value(int index) const { return values_.as<float>() + at(index).offset; }
  float* gradient(int index) { return gradients() + at(index).state_offset; }
  // Keeps a copy of the values as they are now, for AdamwStep::proximal.
  Status keep_anchor();
  void zero_gradient() { ops_.fill(gradients(), num_states_, 0); }
  // Divides the gradient by `weight`, clips it and applies AdamW, as the `count`th time (from 1) in its bias
  // correction. A gradient that is not finite changes nothing.
  StepReport step(const AdamwStep& dials, double weight, int64_t count);

 private:
  Backend& backend_;
  TrainOps& ops_;
  std::vector<Param> params_;
  std::vector<std::vector<float>> initial_;  // values on their way into device memory
  int64_t num_elements_ = 0, num_states_ = 0;
  DeviceBuffer anchor_, values_, gradients_, moments1_, moments2_;
};

// [cols, rows] of what is [rows, cols].
std::vector<float> transposed_copy(std::span<const float> matrix, int64_t rows, int64_t cols);

}  // namespace lk
