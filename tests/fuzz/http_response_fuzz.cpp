// SPDX-License-Identifier: Apache-2.0
// A client's view of one connection: an answer, and the server-sent events in its body, from hostile bytes that arrive
// in pieces. The first byte sets the pieces' size. However they are cut, the outcome must be the same, and nothing may
// grow beyond its limit.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "lk/base/check.h"
#include "lk/net/http_client.h"
#include "lk/net/http_client_parser.h"

namespace {

constexpr int64_t kMaxHeader = 512;
constexpr size_t kMaxEvent = 256;

// Everything that was understood, as text.
std::string run(std::string_view input, size_t step, bool head) {
  std::string log;
  lk::SseParser sse(
      [&](std::string_view data) {
        LK_CHECK(data.size() <= kMaxEvent);
        log += "event " + std::string(data) + "\n";
      },
      kMaxEvent);
  bool sse_ok = true;
  lk::HttpResponseParser parser(kMaxHeader);
  parser.start({[&](int status, const lk::HttpHeaders& headers) {
                  LK_CHECK(status >= 200 && status <= 999);
                  log += std::to_string(status) + "\n";
                  int64_t bytes = 0;
                  for (const auto& [name, value] : headers) bytes += static_cast<int64_t>(name.size() + value.size());
                  LK_CHECK(bytes <= kMaxHeader);
                },
                [&](std::string_view bytes) {
                  LK_CHECK(!bytes.empty() && !head);
                  sse_ok = sse.push(bytes);
                }},
               head);
  size_t consumed = 0;
  while (consumed < input.size() && !parser.done()) {
    const lk::Result<size_t> taken = parser.push(input.substr(consumed, step));
    if (!taken.ok()) return log + (sse_ok ? "" : "overflow ") + "malformed";
    LK_CHECK(*taken > 0);
    consumed += *taken;
  }
  log += parser.done() ? "done " + std::to_string(consumed) + (parser.keep_alive() ? " keep" : " close") : "open";
  return log + (parser.finish().ok() ? " ok" : " cut") + (sse_ok ? "" : " overflow");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool head = (data[0] & 0x80) != 0;
  const std::string whole = run(input, input.size() + 1, head);
  const std::string pieces = run(input, 1 + (data[0] & 0x7f), head);
  LK_CHECK(whole == pieces, "whole: {}\npieces: {}", whole, pieces);
  return 0;
}
