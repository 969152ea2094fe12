// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "lk/tensor/dtype.h"

namespace lk {

// The largest |value| of n elements; NaN if any is, 0 of none.
float largest_magnitude(const void* data, DType dtype, int64_t n);

}  // namespace lk
