// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>

namespace lk {
namespace {

// RFC 9110 date, formatted once per second and thread.
std::string_view http_date() {
  thread_local std::time_t last = 0;
  thread_local char text[40] = "";
  const std::time_t now = std::time(nullptr);
  if (now != last) {
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);  // the C locale is never changed
    last = now;
  }
  return text;
}

void append_clean(std::string* out, std::string_view text) {
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if ((u >= 0x20 || c == '\t') && u != 0x7f) *out += c;
  }
}

void append_field(std::string* out, std::string_view name, std::string_view value) {
  append_clean(out, name);
  *out += ": ";
  append_clean(out, value);
  *out += "\r\n";
}

void append_json_string(std::string* out, std::string_view text) {
  *out += '"';
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (u < 0x20 || u >= 0x7f) {
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", u);
    } else {
      *out += c;
    }
  }
  *out += '"';
}

const char* error_code_name(int status) {
  switch (status) {
    case 408:
      return "request_timeout";
    case 413:
      return "request_too_large";
    case 417:
      return "expectation_failed";
    case 431:
      return "header_too_large";
    case 500:
      return "internal_error";
    case 503:
      return "server_overloaded";
    case 505:
      return "http_version_not_supported";
    default:
      return status < 500 ? "bad_request" : "internal_error";
  }
}

}  // namespace

const char* status_reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 416:
      return "Range Not Satisfiable";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Status";
  }
}

void append_head(std::string* out, const ResponseHead& head) {
  fmt::format_to(std::back_inserter(*out), "HTTP/1.1 {} {}\r\nDate: {}\r\n", head.status, status_reason(head.status),
                 http_date());
  if (!head.content_type.empty()) append_field(out, "Content-Type", head.content_type);
  if (head.content_length >= 0) fmt::format_to(std::back_inserter(*out), "Content-Length: {}\r\n", head.content_length);
  if (head.chunked) *out += "Transfer-Encoding: chunked\r\n";
  if (!head.keep_alive) {
    *out += "Connection: close\r\n";
  } else if (head.http_1_0) {
    *out += "Connection: keep-alive\r\n";
  }
  if (head.headers != nullptr) {
    for (const auto& [name, value] : *head.headers) append_field(out, name, value);
  }
  *out += "\r\n";
}

void append_chunk(std::string* out, std::string_view bytes) {
  if (bytes.empty()) return;
  fmt::format_to(std::back_inserter(*out), "{:x}\r\n", bytes.size());
  out->append(bytes);
  *out += "\r\n";
}

HttpParts split_into_parts(std::string_view bytes) {
  HttpParts parts;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), kHttpPartBytes)))
    parts.emplace_back(bytes.substr(0, kHttpPartBytes));
  return parts;
}

HttpResponse error_response(int status, std::string_view message) {
  HttpResponse response;
  response.status = status;
  response.body = "{\"error\":{\"message\":";
  append_json_string(&response.body, message);
  response.body += fmt::format(",\"type\":\"{}\",\"param\":null,\"code\":\"{}\"}}}}",
                               status < 500 ? "invalid_request_error" : "server_error", error_code_name(status));
  return response;
}

bool is_request_id(std::string_view text) {
  return !text.empty() && text.size() <= 128 &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:") ==
             std::string_view::npos;
}

}  // namespace lk
