// SPDX-License-Identifier: Apache-2.0
// How a model writes tool calls: a property of the chat template that showed it the tools.
#pragma once

#include <cstdint>
#include <string_view>

namespace lk {

enum class ToolFormat : uint8_t { kNone, kHermes, kLlama3, kMistral };  // docs/guide/server.md lists them

// From a template's text and the family of the model that reads it. kNone: no format that is known here.
ToolFormat detect_tool_format(std::string_view model_type, std::string_view template_source);

}  // namespace lk
