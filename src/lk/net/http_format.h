// SPDX-License-Identifier: Apache-2.0
// Writes HTTP/1.1 response heads, chunks and error bodies into strings.
#pragma once

#include <string>
#include <string_view>

#include "lk/net/http_server.h"

namespace lk {

struct ResponseHead {
  int status = 200;
  const HttpHeaders* headers = nullptr;  // may be null
  std::string_view content_type;         // may be empty
  int64_t content_length = -1;           // -1: none
  bool chunked = false;
  bool http_1_0 = false;
  bool keep_alive = true;
};

const char* status_reason(int status);
// Control characters in header values are dropped: text of a request may be echoed there and must not start a new line.
void append_head(std::string* out, const ResponseHead& head);
void append_chunk(std::string* out, std::string_view bytes);  // nothing for no bytes: an empty chunk would be the end

// {"error": {"message", "type", "param", "code"}} as OpenAI clients expect it.
HttpResponse error_response(int status, std::string_view message);

}  // namespace lk
