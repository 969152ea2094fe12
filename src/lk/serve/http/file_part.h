// SPDX-License-Identifier: Apache-2.0
// Files for who asks for them by digest and in parts (Range).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lk/net/http_server.h"
#include "lk/serve/openai/openai.h"

namespace lk {

// Most bytes of one answer: what is held in memory for somebody who fetches. Who wants more asks again.
inline constexpr int64_t kFilePartBytes = int64_t{4} << 20;

// 206 with what `range` (the header: one range of bytes, or "" for all) wants of a file that has `bytes` bytes; 416.
// Reads the file.
ApiResult<HttpResponse> file_part(const std::string& path, int64_t bytes, std::string_view range);

}  // namespace lk
