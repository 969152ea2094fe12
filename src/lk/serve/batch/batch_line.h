// SPDX-License-Identifier: Apache-2.0
// OpenAI's batch files: a request a line in, its result a line out.
// Source: OpenAI's API reference, "The request input object" and "The request output object" of Batch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/json_form.h"
#include "lk/base/line_reader.h"

namespace lk {

enum BatchLineForm : uint32_t { kBatchLineForm = 1 << 0 };

inline constexpr Field kBatchLineFields[] = {
    rows::required(rows::text("custom_id", kBatchLineForm, rows::kOpenAi, 1, 512)),
    rows::required(rows::word("method", kBatchLineForm, rows::kOpenAi, "POST", "")),
    rows::required(rows::text("url", kBatchLineForm, rows::kOpenAi, 1, 256)),
    rows::required(rows::object("body", kBatchLineForm, rows::kOpenAi, "")),
};

// Of a line that is no request.
struct BatchError {
  std::string code, message, param;  // "" = null
};

struct BatchLine {
  std::string custom_id, url;
  std::string body;  // JSON
  // Nothing of the above but perhaps custom_id is set then.
  std::optional<BatchError> error;
  std::vector<std::string> ignored;  // names of fields beside them
};

// `url` is any that is served by POST to whoever may ask for answers (serve/http/routes.h).
BatchLine parse_batch_line(const LineReader::Line& line);

// {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}; `body` is JSON. No line break.
std::string format_batch_answer(std::string_view id, std::string_view custom_id, int status,
                                std::string_view request_id, std::string_view body);
// The same with "response": null and "error": {"code", "message", "line", "param"}.
std::string format_batch_error(std::string_view id, std::string_view custom_id, int64_t line, const BatchError& error);

// What a result begins with says which it is, so that nobody has to read the rest. "" when it is none.
std::string_view batch_id_of(std::string_view result);

}  // namespace lk
