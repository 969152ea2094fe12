// SPDX-License-Identifier: Apache-2.0
// A server's view of one connection: requests parsed one after another from hostile bytes that arrive in pieces. The
// first byte sets the pieces' size. However they are cut, the outcome must be the same; what is accepted must be
// unambiguous.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "lk/base/check.h"
#include "lk/net/http_format.h"
#include "lk/net/http_parser.h"

namespace {

lk::HttpLimits small_limits() {
  lk::HttpLimits limits;
  limits.max_header_bytes = 1024;
  limits.max_body_bytes = 4096;
  return limits;
}

void check_request(const lk::HttpRequest& r, const lk::HttpLimits& limits) {
  LK_CHECK(!r.method.empty() && !r.target.empty() && !r.path.empty());
  LK_CHECK(static_cast<int64_t>(r.body.size()) <= limits.max_body_bytes);
  LK_CHECK(r.path.find('\0') == std::string::npos);
  int framing = 0;
  for (const auto& [name, value] : r.headers) {
    LK_CHECK(!name.empty());
    for (const char c : value) LK_CHECK(static_cast<unsigned char>(c) >= 0x20 || c == '\t');
    framing += name == "content-length" || name == "transfer-encoding";
    if (name == "content-length") LK_CHECK(std::stoull(value) == r.body.size());
  }
  LK_CHECK(framing <= 1);
  LK_CHECK(framing == 1 || r.body.empty());
}

// Everything that was understood, as text.
std::string run(std::string_view input, size_t step, const lk::HttpLimits& limits) {
  std::string log, pending;
  auto parser = std::make_unique<lk::HttpParser>(limits);
  for (size_t at = 0; at < input.size(); at += step) {
    pending.append(input.substr(at, step));
    for (;;) {
      size_t used = 0;
      const auto event = parser->parse(pending, &used);
      LK_CHECK(used <= pending.size());
      pending.erase(0, used);
      if (event == lk::HttpParser::Event::kNeedMore) break;
      if (event == lk::HttpParser::Event::kError) {
        const lk::HttpResponse answer = lk::error_response(parser->error().status, parser->error().message);
        LK_CHECK(answer.status >= 400 && answer.status < 600);
        return log + std::to_string(answer.status);
      }
      if (event == lk::HttpParser::Event::kHead) continue;
      const lk::HttpRequest& r = parser->request();
      check_request(r, limits);
      log += r.method + " " + r.path + "?" + r.query + " " + r.body + (parser->keep_alive() ? " +" : " -") + "\n";
      parser = std::make_unique<lk::HttpParser>(limits);
      if (pending.empty()) break;
    }
    LK_CHECK(static_cast<int64_t>(pending.size()) <= limits.max_header_bytes + static_cast<int64_t>(step));
  }
  return log;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  static const lk::HttpLimits limits = small_limits();
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string pieces = run(input, 1 + data[0] % 64, limits);
  const std::string whole = run(input, input.size(), limits);
  LK_CHECK(pieces == whole, "in pieces of {}:\n{}\nas a whole:\n{}", 1 + data[0] % 64, pieces, whole);
  return 0;
}
