// SPDX-License-Identifier: Apache-2.0
// Parses and renders arbitrary templates under small limits: no crash, no leak, no hang.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>

#include "lk/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const boost::json::object kVariables =
      boost::json::parse(R"({"messages": [{"role": "system", "content": "be brief"},
                             {"role": "user", "content": "h\u00e9llo <b>"},
                             {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f",
                              "arguments": {"x": 1, "y": [1.5, null, true]}}}]}],
                             "tools": [{"function": {"name": "f", "parameters": {"type": "object"}}}],
                             "s": "a,b", "n": 3, "f": 2.5, "l": [3, 1, 2], "d": {"k": "v", "a": 1},
                             "strftime_now_unix": 1760000000, "add_generation_prompt": true})")
          .as_object();
  const auto parsed = lk::ChatTemplate::parse(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!parsed.ok()) return 0;
  lk::TemplateLimits limits;
  limits.max_steps = 20'000;
  limits.max_output_bytes = 64 << 10;
  limits.max_time = std::chrono::milliseconds(200);
  const auto rendered = (*parsed)->render(kVariables, limits);
  if (rendered.ok() && rendered->size() > 64 << 10) __builtin_trap();
  return 0;
}
