// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client_url.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace lk {
namespace {

bool is_token(std::string_view text) {  // RFC 9110, 5.6.2
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](unsigned char c) {
    return std::isalnum(c) != 0 || kMarks.find(static_cast<char>(c)) != std::string_view::npos;
  });
}

bool is_field_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c == '\t' || (c >= ' ' && c != 0x7f); });
}

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](unsigned char x, unsigned char y) {
           return std::tolower(x) == std::tolower(y);
         });
}

bool has_space_or_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](unsigned char c) { return c <= ' ' || c == 0x7f; });
}

Result<ClientUrl> parse_unix(std::string_view rest) {
  ClientUrl url;
  const size_t colon = rest.find(":/");
  url.unix_path = rest.substr(0, colon);
  url.target = colon == std::string_view::npos ? "/" : rest.substr(colon + 1);
  url.host_header = "localhost";
  if (!url.unix_path.starts_with('/') || url.unix_path.size() > 107)
    return invalid_argument("a unix url needs an absolute path of at most 107 bytes");
  return url;
}

}  // namespace

std::string ClientUrl::pool_key() const {
  return unix_path.empty() ? fmt::format("{}//{}:{}", tls ? "https:" : "http:", host, port) : "unix:" + unix_path;
}

Result<ClientUrl> parse_client_url(std::string_view text) {
  const std::string_view whole = text;
  if (text.size() > 8192) return invalid_argument("the url is longer than 8192 bytes");
  if (has_space_or_control(text)) return invalid_argument("the url \"{}\" holds a space or a control character", whole);
  text = text.substr(0, text.find('#'));
  if (text.starts_with("unix:")) return parse_unix(text.substr(5));
  ClientUrl url;
  if (text.starts_with("https://")) {
    url.tls = true;
    text.remove_prefix(8);
  } else if (text.starts_with("http://")) {
    text.remove_prefix(7);
  } else {
    return invalid_argument("\"{}\" is not a url: write http://HOST:PORT, https://HOST:PORT or unix:/PATH", whole);
  }
  const size_t slash = text.find_first_of("/?");
  std::string_view authority = text.substr(0, slash);
  if (slash != std::string_view::npos) url.target = text.substr(slash);
  if (!url.target.starts_with('/')) url.target.insert(0, "/");
  if (authority.find('@') != std::string_view::npos)
    return invalid_argument("the url must not hold a user name or password");
  url.host_header = authority;
  std::string_view port;
  if (authority.starts_with('[')) {
    const size_t bracket = authority.find(']');
    if (bracket == std::string_view::npos) return invalid_argument("\"{}\": ']' is missing", whole);
    url.host = authority.substr(1, bracket - 1);
    port = authority.substr(bracket + 1);
    if (!port.empty() && !port.starts_with(':'))
      return invalid_argument("\"{}\": after ']' comes a port or nothing", whole);
  } else {
    const size_t colon = authority.find(':');
    url.host = authority.substr(0, colon);
    if (colon != std::string_view::npos) port = authority.substr(colon);
  }
  if (url.host.empty()) return invalid_argument("\"{}\" names no host", whole);
  if (!port.empty()) port.remove_prefix(1);
  if (port.empty()) port = url.tls ? "443" : "80";
  int number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number < 1 || number > 65535)
    return invalid_argument("\"{}\": the port must be 1..65535", whole);
  url.port = std::to_string(number);
  return url;
}

Result<std::string> format_client_request(const ClientRequest& request, const ClientUrl& url) {
  if (!is_token(request.method)) return invalid_argument("\"{}\" is not an HTTP method", request.method);
  std::string out;
  out.reserve(256 + request.body.size());
  fmt::format_to(std::back_inserter(out), "{} {} HTTP/1.1\r\n", request.method, url.target);
  bool has_host = false, has_agent = false;
  for (const auto& [name, value] : request.headers) {
    if (!is_token(name) || !is_field_value(value))
      return invalid_argument("header \"{}\" holds a character that HTTP does not allow", name);
    if (equals_ignoring_case(name, "content-length") || equals_ignoring_case(name, "transfer-encoding"))
      return invalid_argument("header {} is set by the client itself", name);
    has_host |= equals_ignoring_case(name, "host");
    has_agent |= equals_ignoring_case(name, "user-agent");
    fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  }
  if (!has_host) fmt::format_to(std::back_inserter(out), "Host: {}\r\n", url.host_header);
  if (!has_agent) out += "User-Agent: lorikeet\r\n";
  const bool may_have_body = request.method == "POST" || request.method == "PUT" || request.method == "PATCH";
  if (may_have_body || !request.body.empty())
    fmt::format_to(std::back_inserter(out), "Content-Length: {}\r\n", request.body.size());
  out += "\r\n";
  out += request.body;
  return out;
}

bool is_idempotent_method(std::string_view method) {
  return method == "GET" || method == "HEAD" || method == "PUT" || method == "DELETE" || method == "OPTIONS";
}

}  // namespace lk
