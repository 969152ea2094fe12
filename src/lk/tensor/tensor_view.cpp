// SPDX-License-Identifier: Apache-2.0
#include "lk/tensor/tensor_view.h"

#include <fmt/ranges.h>

namespace lk {

std::string TensorView::shape_string() const { return fmt::format("[{}]", fmt::join(shape(), ", ")); }

}  // namespace lk
