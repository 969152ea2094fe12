// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "lk/tensor/tensor_view.h"

namespace lk {

// All elements of a tensor in host memory, of any floating-point type, row by row.
inline std::vector<float> f32_values(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  view.copy_to(values.data());
  return values;
}

}  // namespace lk
