// SPDX-License-Identifier: Apache-2.0
// How a model writes tool calls: a property of the chat template that showed it the tools.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lk {

enum class ToolFormat : uint8_t {  // docs/guide/server.md lists them
  kNone,
  kHermes,
  kLlama3,
  kMistral,
  kQwen3Coder,
  kPythonic,
  kGranite,
  kPhi4,
};
inline constexpr int kNumToolFormats = 8;

// By the name that --tool-call-parser gives it; "none" is kNone.
std::optional<ToolFormat> parse_tool_format(std::string_view name);

// From a template's text and the family of the model that reads it. kNone: no format that is known here.
ToolFormat detect_tool_format(std::string_view model_type, std::string_view template_source);

}  // namespace lk
