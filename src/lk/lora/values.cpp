// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/values.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "lk/io/weights.h"

namespace lk {
namespace {

Status overflows(std::string_view tensor, float largest, std::string_view use) {
  return data_loss("tensor '{}' has values up to {:.4g}, which overflow {}; training diverged or the file is damaged",
                   tensor, largest, use);
}

float largest_of(const TensorView& view) { return view.defined() ? largest_magnitude(view) : 0; }

}  // namespace

DeltaMagnitudes magnitudes_of(const LoraDelta& delta) {
  return {largest_of(delta.a), largest_of(delta.b), largest_of(delta.bias), largest_of(delta.dora_scale)};
}

Status check_delta(std::string_view module, int64_t in, int64_t rank, double scaling, const DeltaMagnitudes& largest) {
  const double factor = std::abs(scaling);
  const double down = static_cast<double>(in) * largest.a * std::max(1.0, factor);
  const double up = static_cast<double>(rank) * largest.b * down;
  const double out = (up + factor * largest.bias) * std::max(1.0, static_cast<double>(largest.dora_scale));
  // Negated, so that NaN fails too.
  if (!(std::max({static_cast<double>(largest.a), static_cast<double>(largest.b)}) <= kLargestWeight &&
        down <= FLT_MAX && up <= FLT_MAX && out <= FLT_MAX))
    return data_loss(
        "module '{}': lora_A up to {:.4g}, lora_B up to {:.4g}, bias up to {:.4g}, DoRA scale up to {:.4g} and scaling "
        "{:.4g} overflow f32 together; training diverged, the file is damaged or lora_alpha is wrong",
        module, largest.a, largest.b, largest.bias, largest.dora_scale, scaling);
  return Status();
}

Status check_replacement(WeightId weight, std::string_view tensor, std::span<const int64_t> shape, float largest) {
  if (weight.module == kEmbedding) return check_embedding(tensor, shape[1], largest);
  if (weight.bias) return largest <= FLT_MAX ? Status() : overflows(tensor, largest, "f32");
  if (shape.size() == 2)
    return largest <= kLargestWeight && static_cast<double>(shape[1]) * largest <= FLT_MAX
               ? Status()
               : overflows(tensor, largest, "f32 in a product");
  // A normalised row has elements of up to sqrt(dim); its product with the weight is kept as bf16.
  return std::sqrt(static_cast<double>(shape[0])) * largest <= kLargestWeight ? Status()
                                                                              : overflows(tensor, largest, "bf16");
}

Status check_embedding(std::string_view tensor, int64_t hidden_dim, float largest) {
  return static_cast<double>(hidden_dim) * largest * largest <= FLT_MAX
             ? Status()
             : overflows(tensor, largest, "f32 when a norm adds up their squares");
}

}  // namespace lk
