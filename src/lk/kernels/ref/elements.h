// SPDX-License-Identifier: Apache-2.0
// Elements of arrays of activations as doubles, for the references of training.
#pragma once

#include "lk/tensor/dtype.h"

namespace lk::ref {

inline double get(const void* x, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<double>(static_cast<const float*>(x)[index]);
  return static_cast<double>(static_cast<float>(static_cast<const bf16*>(x)[index]));
}
inline void put(void* y, DType dtype, int64_t index, double value) {
  if (dtype == DType::kF32)
    static_cast<float*>(y)[index] = static_cast<float>(value);
  else
    static_cast<bf16*>(y)[index] = bf16(static_cast<float>(value));
}

}  // namespace lk::ref
