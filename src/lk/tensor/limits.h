// SPDX-License-Identifier: Apache-2.0
// Extents that size fixed arrays in the kernels. Whoever reads an extent from a file refuses more
// (io/model_config.cpp), and the back-end checks again (ops/backend.cpp).
#pragma once

#include <cstdint>

namespace lk {

inline constexpr int64_t kMaxHeadDim = 256;  // a query vector's state stays on the attention kernel's stack

}  // namespace lk
