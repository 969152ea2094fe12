// SPDX-License-Identifier: Apache-2.0
// The JSON-lines format of `lorikeet generate --input`: one request a line in, one result a line out.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lk/infer/text_sequence.h"

namespace lk {

struct JsonlRequest {
  boost::json::value id;  // string or integer, echoed; null when absent
  TextRequest request;
  std::optional<std::string> expected;  // the answer that would be right: the result says whether it matched
};

// The fields of kBatchForm (request_fields.h). An unknown or mistyped field is an error that names it. `defaults`
// supplies what the line leaves out.
Result<JsonlRequest> parse_jsonl_request(std::string_view line, const TextRequest& defaults);
// The id of a line that could not be parsed as a request, if it has one.
boost::json::value jsonl_id(std::string_view line);

// Equal after removing white space at both ends.
bool matches_expected(const std::string& text, const std::string& expected);

// {"id", "adapter", "text", "reasoning" (where there is any), "token_ids", "logprobs", "prompt_logprobs",
// "finish_reason", "prompt_tokens", "completion_tokens"}, and "match" where an answer was expected; a failed request
// has "error" {"code", "message"} instead of the results. No line break at the end.
std::string format_jsonl_result(const boost::json::value& id, const std::string& adapter, const Completion& completion,
                                const std::optional<std::string>& expected = {});
std::string format_jsonl_error(const boost::json::value& id, const std::string& adapter, const Status& error);

}  // namespace lk
