// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/dialect.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include "lk/base/json_text.h"

namespace lk {
namespace {

namespace json = boost::json;

json::value text_or_null(std::string_view text) { return text.empty() ? json::value(nullptr) : json::value(text); }

// docs.anthropic.com/en/api/errors
std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

json::object responses_event(json::object error, int64_t shown) {
  json::object event{{"type", "error"}, {"sequence_number", shown}};
  for (const char* key : {"code", "message", "param"}) {
    const json::value* value = error.if_contains(key);
    event[key] = value != nullptr ? *value : json::value(nullptr);
  }
  return event;
}

std::string named_event(std::string_view data) { return fmt::format("event: error\ndata: {}\n\n", data); }

}  // namespace

std::string error_body(Dialect dialect, int status, const ErrorWords& words) {
  if (dialect == Dialect::kAnthropic)
    return json_text(
        json::object{{"type", "error"}, {"error", {{"type", anthropic_type(status)}, {"message", words.message}}}});
  return json_text(json::object{{"error",
                                 {{"message", words.message},
                                  {"type", words.type},
                                  {"param", text_or_null(words.param)},
                                  {"code", text_or_null(words.code)}}}});
}

std::string error_events(Dialect dialect, int status, const ErrorWords& words, int64_t shown) {
  const std::string body = error_body(dialect, status, words);
  if (dialect == Dialect::kOpenAi) return fmt::format("data: {}\n\ndata: [DONE]\n\n", body);
  if (dialect == Dialect::kAnthropic) return named_event(body);
  return named_event(json_text(responses_event(
      {{"message", words.message}, {"param", text_or_null(words.param)}, {"code", text_or_null(words.code)}}, shown)));
}

std::string error_events(Dialect dialect, std::string_view body) {
  if (dialect == Dialect::kOpenAi) return fmt::format("data: {}\n\ndata: [DONE]\n\n", body);
  if (dialect == Dialect::kAnthropic) return named_event(body);
  boost::system::error_code failed;
  const json::value value = json::parse(body, failed);
  const json::object* object = failed ? nullptr : value.if_object();
  const json::value* error = object != nullptr ? object->if_contains("error") : nullptr;
  return named_event(
      json_text(responses_event(error != nullptr && error->is_object() ? error->get_object() : json::object(), 0)));
}

}  // namespace lk
