// SPDX-License-Identifier: Apache-2.0
// The benches of the engine's workshop (base/workshop.h).
#pragma once

#include <cstddef>

namespace lk {

inline constexpr size_t kReaderBench = 0;  // from disk into host memory: urgent for loads, idle for all else
inline constexpr size_t kCopierBench = 1;  // from there into pages, so that a slow read holds up no copy
inline constexpr size_t kMergerBench = 2;  // merged weights, one adapter after the other

}  // namespace lk
