// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_params.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Parameters begin at whole vectors of 16 elements, so that one call of an op may walk all of them.
constexpr int64_t align16(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace

const char* to_string(ParamKind kind) {
  switch (kind) {
    case ParamKind::kA:
      return "lora_A";
    case ParamKind::kB:
      return "lora_B";
    case ParamKind::kBias:
      return "lora_B_bias";
    case ParamKind::kMagnitude:
      return "lora_magnitude_vector";
    case ParamKind::kSigma:
      return "lora_sigma";
    case ParamKind::kWeight:
      return "weight";
    case ParamKind::kTokens:
      return "trainable_tokens";
    case ParamKind::kSparse:
      return "sparse_values";
  }
  check_failed(__FILE__, __LINE__, "kind", "not a ParamKind");
}

std::string Param::name() const { return module_path(module) + "." + to_string(kind); }

std::vector<float> transposed_copy(std::span<const float> matrix, int64_t rows, int64_t cols) {
  std::vector<float> result(matrix.size());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t col = 0; col < cols; ++col)
      result[static_cast<size_t>(col * rows + row)] = matrix[static_cast<size_t>(row * cols + col)];
  return result;
}

int TrainParams::add(ModuleId module, ParamKind kind, const Rows& rows, int64_t cols) {
  const Param& param =
      params_.emplace_back(module, kind, rows.all, cols, rows.trained, rows.state, num_elements_, num_states_);
  num_elements_ += align16(param.size());
  num_states_ += align16(param.state_size());
  initial_.emplace_back(static_cast<size_t>(param.size()));
  return static_cast<int>(params_.size()) - 1;
}

void TrainParams::set(int index, const TensorView& values) {
  values.copy_to(initial_[static_cast<size_t>(index)].data());
}

void TrainParams::set_transposed(int index, const TensorView& values) {
  std::vector<float> plain(static_cast<size_t>(values.num_elements()));
  values.copy_to(plain.data());
  initial_[static_cast<size_t>(index)] = transposed_copy(plain, values.dim(0), values.dim(1));
}

int64_t TrainParams::num_trained() const {
  int64_t n = 0;
  for (const Param& param : params_) n += param.trained_size();
  return n;
}

Status TrainParams::allocate() {
  LK_ASSIGN_OR_RETURN(values_, backend_.try_allocate(num_elements_ * 4));
  // Before the other arrays take memory the copies on the host give theirs back.
  for (size_t index = 0; index < params_.size(); ++index) {
    backend_.upload(value(static_cast<int>(index)), std::span<const float>(initial_[index]));
    initial_[index] = std::vector<float>();  // "{}" would keep the memory
  }
  for (DeviceBuffer* buffer : {&gradients_, &moments1_, &moments2_}) {
    LK_ASSIGN_OR_RETURN(*buffer, backend_.try_allocate(num_states_ * 4));
    ops_.fill(buffer->as<float>(), num_states_, 0);
  }
  return Status();
}

Status TrainParams::keep_anchor() {
  LK_ASSIGN_OR_RETURN(anchor_, backend_.try_allocate(num_elements_ * 4));
  ops_.round_rows({.x = values(),
                   .x_stride = num_elements_,
                   .y = anchor_.data(),
                   .y_dtype = DType::kF32,
                   .y_stride = num_elements_,
                   .num_rows = 1,
                   .n = num_elements_,
                   .padded = num_elements_});
  return Status();
}

StepReport TrainParams::step(const AdamwStep& dials, double weight, int64_t count) {
  StepReport report;
  if (dials.proximal > 0) {
    LK_CHECK(anchor_.data() != nullptr);
    for (const Param& param : params_)  // the gradient is a sum over tokens until it is divided by their weight
      ops_.proximal_gradient({.x = values() + param.offset,
                              .anchor = anchor_.as<float>() + param.offset,
                              .gradient = gradients() + param.state_offset,
                              .n = param.trained_size(),
                              .factor = static_cast<float>(dials.proximal * weight)});
  }
  report.gradient_norm = std::sqrt(ops_.sum_squares(gradients(), num_states_)) / weight;
  report.finite = std::isfinite(report.gradient_norm);
  if (!report.finite) return report;
  const double clipped = dials.clip > 0 ? std::min(1.0, dials.clip / (report.gradient_norm + 1e-6)) : 1.0;
  const auto steps = static_cast<double>(count);
  for (const Param& param : params_) {
    // LoRA+ gives the larger rate to B and, as PEFT does it, to vectors.
    const bool is_b = (param.kind == ParamKind::kB && param.module != kEmbedding) || !param.is_matrix();
    ops_.adamw({.param = values() + param.offset,
                .gradient = gradients() + param.state_offset,
                .m = first_moments() + param.state_offset,
                .v = second_moments() + param.state_offset,
                .n = param.trained_size(),
                .rate = dials.rate * (is_b ? dials.b_rate_ratio : 1.0),
                .beta1 = dials.beta1,
                .beta2 = dials.beta2,
                .eps = dials.eps,
                .decay = param.is_matrix() ? dials.decay : 0.0,
                .correction1 = 1 - std::pow(dials.beta1, steps),
                .correction2 = 1 - std::pow(dials.beta2, steps),
                .grad_scale = clipped / weight});
  }
  return report;
}

}  // namespace lk
