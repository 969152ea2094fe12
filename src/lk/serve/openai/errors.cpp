// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/openai.h"

namespace lk {
namespace {

// Where the server keeps its files is nobody's business: of an absolute path the last two names stay, which say whose
// file it is. Logs have all of it.
std::string with_short_paths(std::string_view message) {
  constexpr std::string_view kBefore = " \"'(", kBehind = " \"'(),:;`";
  std::string out;
  for (size_t at = 0; at < message.size();) {
    const bool begins = message[at] == '/' && (at == 0 || kBefore.find(message[at - 1]) != kBefore.npos);
    if (!begins) {
      out += message[at++];
      continue;
    }
    const std::string_view path = message.substr(at, message.find_first_of(kBehind, at) - at);
    at += path.size();
    const size_t last = path.rfind('/');
    const size_t before = last == 0 ? last : path.rfind('/', last - 1);
    const bool is_route = path.starts_with("/v1/");
    out += is_route || last == 0 ? path : path.substr(before + 1);
  }
  return out;
}

}  // namespace

ApiError api_error(const Status& status, std::string_view request_id) {
  ApiError error{.message = status.message()};
  const auto set = [&](int http_status, std::string type, std::string code, double retry_after = 0) {
    error.status = http_status;
    error.type = std::move(type);
    error.code = std::move(code);
    error.retry_after_seconds = retry_after;
  };
  switch (status.code()) {
    case StatusCode::kOk:
    case StatusCode::kInternal:
    case StatusCode::kIoError:
      set(500, "server_error", "internal_error");
      error.message = "The server failed on this request.";
      if (!request_id.empty()) error.message += fmt::format(" Quote request {} when you report it.", request_id);
      break;
    case StatusCode::kInvalidArgument:
    case StatusCode::kDataLoss:
    case StatusCode::kUnsupported:
    case StatusCode::kFailedPrecondition:
      error.message = with_short_paths(error.message);
      set(400, "invalid_request_error", "");
      break;
    case StatusCode::kNotFound:
      set(404, "invalid_request_error", "not_found");
      break;
    case StatusCode::kAlreadyExists:
      set(400, "invalid_request_error", "already_exists");
      break;  // not 409: clients retry that
    case StatusCode::kUnauthenticated:
      set(401, "invalid_request_error", "invalid_api_key");
      break;
    case StatusCode::kPermissionDenied:
      set(403, "invalid_request_error", "permission_denied");
      break;
    // Something that will be free again: what is too large for ever is kInvalidArgument or kUnsupported.
    case StatusCode::kResourceExhausted:
      error.message = with_short_paths(error.message);
      set(429, "rate_limit_error", "rate_limit_exceeded", 1);
      break;
    case StatusCode::kUnavailable:
      error.message = with_short_paths(error.message);
      set(503, "server_error", "overloaded", 1);
      break;
    case StatusCode::kDeadlineExceeded:
      set(408, "server_error", "timeout");
      break;
    case StatusCode::kCancelled:
      set(499, "invalid_request_error", "cancelled");
      break;
  }
  return error;
}

ErrorWords words_of(const ApiError& error) {
  return {.message = error.message, .type = error.type, .param = error.param, .code = error.code};
}

std::string format_error(const ApiError& error, Dialect dialect) {
  return error_body(dialect, error.status, words_of(error));
}

}  // namespace lk
