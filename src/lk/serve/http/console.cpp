// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/console.h"

#include <array>
#include <string>

#include "lk/serve/http/embedded.h"

namespace lk {
namespace {

struct Entry {
  std::string_view path, content_type;
  const embedded::File* file;
  std::string etag;
};

const std::array<Entry, 4>& entries() {
  const auto make = [](std::string_view path, std::string_view type, const embedded::File& file) {
    return Entry{path, type, &file, '"' + std::string(file.digest) + '"'};
  };
  static const std::array<Entry, 4> all = {
      make("/", "text/html; charset=utf-8", embedded::index_html),
      make("/console/console.css", "text/css; charset=utf-8", embedded::console_css),
      make("/console/console.js", "text/javascript; charset=utf-8", embedded::console_js),
      make("/console/icon.svg", "image/svg+xml", embedded::icon_svg)};
  return all;
}

std::string_view text(const embedded::File& file) { return {reinterpret_cast<const char*>(file.bytes), file.size}; }

}  // namespace

std::optional<ConsoleFile> console_file(std::string_view path) {
  for (const Entry& entry : entries())
    if (entry.path == path)
      return ConsoleFile{.body = text(*entry.file), .content_type = entry.content_type, .etag = entry.etag};
  return std::nullopt;
}

std::string_view console_page() { return text(embedded::index_html); }

std::string_view console_csp() {
  return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri "
         "'none'; form-action 'none'; "
         "frame-ancestors 'none'";
}

std::optional<HttpResponse> console_response(const HttpRequest& request) {
  const std::optional<ConsoleFile> file = console_file(request.path);
  if (!file) return std::nullopt;
  HttpResponse response{.headers = {{"etag", std::string(file->etag)},
                                    {"cache-control", "no-cache"},
                                    {"content-security-policy", std::string(console_csp())},
                                    {"x-content-type-options", "nosniff"},
                                    {"referrer-policy", "no-referrer"}},
                        .content_type = std::string(file->content_type)};
  if (etag_matches(request.header("if-none-match"), file->etag))
    response.status = 304;
  else
    response.body = file->body;
  return response;
}

bool etag_matches(std::string_view if_none_match, std::string_view etag) {
  while (!if_none_match.empty()) {
    const size_t comma = if_none_match.find(',');
    std::string_view tag = if_none_match.substr(0, comma);
    if_none_match.remove_prefix(comma == std::string_view::npos ? if_none_match.size() : comma + 1);
    while (!tag.empty() && (tag.front() == ' ' || tag.front() == '\t')) tag.remove_prefix(1);
    while (!tag.empty() && (tag.back() == ' ' || tag.back() == '\t')) tag.remove_suffix(1);
    if (tag.starts_with("W/")) tag.remove_prefix(2);
    if (tag == "*" || tag == etag) return true;
  }
  return false;
}

}  // namespace lk
