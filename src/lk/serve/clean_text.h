// SPDX-License-Identifier: Apache-2.0
// Names and paths from outside may hold any bytes; what goes into logs, labels and JSON must not.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lk {

// Valid UTF-8 without control characters, at most max_bytes and never half a character; each bad byte becomes '?'.
std::string clean_text(std::string_view text, size_t max_bytes);

}  // namespace lk
