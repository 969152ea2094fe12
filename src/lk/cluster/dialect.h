// SPDX-License-Identifier: Apache-2.0
// In whose words a route answers: what servers and routers say when they refuse or break off.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

enum class Dialect : uint8_t {
  kOpenAi,     // {"error": {...}}; streams end with [DONE]
  kResponses,  // OpenAI's Responses: the same, but its streams are events with names and numbers
  kAnthropic,  // {"type": "error", "error": {...}}
};

struct ErrorWords {
  std::string_view message, type, param, code;  // "" is null
};
// The body of a refusal with this status. Anthropic's types follow from the status.
std::string error_body(Dialect dialect, int status, const ErrorWords& words);
// The events that end a stream with this error. `shown`: numbered events before it.
std::string error_events(Dialect dialect, int status, const ErrorWords& words, int64_t shown = 0);
// Likewise, of the body of a refusal that came from somewhere else.
std::string error_events(Dialect dialect, std::string_view body);

}  // namespace lk
