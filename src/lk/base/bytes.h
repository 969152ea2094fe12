// SPDX-License-Identifier: Apache-2.0
// Sizes as people write and read them.
#pragma once

#include <cstdint>
#include <string>

#include "lk/base/status.h"

namespace lk {

// "8GiB", "512MiB", "1000000" -> bytes. kInvalidArgument for what is not a size above 0.
Result<int64_t> parse_bytes(const std::string& text);
// 2469606195 -> "2.30 GiB".
std::string format_bytes(int64_t bytes);

}  // namespace lk
