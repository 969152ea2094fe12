// SPDX-License-Identifier: Apache-2.0
// Token slots per KV page: known to the kernels' layout of a page, to the scheduler's block tables and to the prices of
// the simulator.
#pragma once

#include <cstdint>

namespace lk {

inline constexpr int64_t kPageTokens = 16;
constexpr int64_t pages_for(int64_t num_tokens) { return (num_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace lk
