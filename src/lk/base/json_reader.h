// SPDX-License-Identifier: Apache-2.0
// Request bodies to JSON values, strictly: RFC 8259 in valid UTF-8, nothing after it, at most 64 levels and 2^20
// values, no key twice in an object (parsers that keep the first and parsers that keep the last would see two different
// requests), no number that would change.
#pragma once

#include <string_view>

#include <boost/json/value.hpp>

#include "lk/base/status.h"

namespace lk {

inline constexpr int kMaxJsonDepth = 64;
inline constexpr int64_t kMaxJsonValues = 1 << 20;

// kInvalidArgument says what is wrong and at which byte. The value lives in `storage`.
Result<boost::json::value> read_json(std::string_view body, boost::json::storage_ptr storage = {},
                                     int max_depth = kMaxJsonDepth);

}  // namespace lk
