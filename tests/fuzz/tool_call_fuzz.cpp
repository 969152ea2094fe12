// SPDX-License-Identifier: Apache-2.0
// A model's text with tool calls, in the format that the first byte picks, and with its thoughts before it: cut at
// every byte it gives the same as whole, whatever it is, and no byte costs more than a bounded number of looks.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <boost/json.hpp>

#include "lk/serve/openai/tool_parser.h"
#include "lk/text/reasoning.h"

namespace {

using lk::openai::ToolDelta;
using lk::openai::ToolDeltas;

struct Result {
  std::string thoughts, answer, calls;
  bool operator==(const Result&) const = default;
};

Result parse(uint8_t mode, std::string_view text, size_t piece) {
  static const auto kinds = std::make_shared<lk::openai::ParameterKinds>(
      boost::json::parse(R"([{"function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}])")
          .as_array());
  lk::openai::ToolSyntax syntax;
  syntax.format = static_cast<lk::ToolFormat>(mode % lk::kNumToolFormats);
  syntax.names = {"f", "g"};
  syntax.forced = mode / 64 % 2 != 0;
  syntax.kinds = kinds;
  lk::openai::ToolCallParser parser(syntax);
  lk::ThoughtSplitter splitter(lk::ReasoningFormat::kQwen3, static_cast<lk::ThinkingStart>(mode / 8 % 3),
                               mode / 32 % 2 != 0);
  Result result;
  ToolDeltas deltas;
  const auto push = [&](bool last, std::string_view part) {
    std::string answer;
    if (last)
      splitter.finish(result.thoughts, answer);
    else
      splitter.push(part, result.thoughts, answer);
    parser.push(answer, deltas);
  };
  for (size_t at = 0; at < text.size(); at += piece) push(false, text.substr(at, piece));
  push(true, {});
  parser.finish(deltas);
  int last = -1;
  for (const ToolDelta& delta : deltas) {
    if (delta.kind == ToolDelta::Kind::kContent) {
      result.answer += delta.text;
      continue;
    }
    if (delta.kind == ToolDelta::Kind::kBegin) {
      if (delta.call != last + 1) __builtin_trap();
      last = delta.call;
      result.calls += '\0';
    } else if (delta.call != last) {
      __builtin_trap();
    }
    result.calls += delta.text;
  }
  if (parser.num_calls() != last + 1) __builtin_trap();
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, std::min<size_t>(size - 1, 4096));
  const Result whole = parse(data[0], text, std::max<size_t>(1, text.size()));
  if (parse(data[0], text, 1) != whole || parse(data[0], text, 3) != whole) __builtin_trap();
  const bool forced = data[0] / 64 % 2 != 0;
  if (forced && data[0] % lk::kNumToolFormats != 0 && !whole.answer.empty()) __builtin_trap();
  return 0;
}
