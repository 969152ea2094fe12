// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tool_format.h"

namespace lk {

ToolFormat detect_tool_format(std::string_view model_type, std::string_view source) {
  const auto has = [&](std::string_view mark) { return source.find(mark) != std::string_view::npos; };
  if (has("[TOOL_CALLS]")) return ToolFormat::kMistral;
  if (has("<tool_call>")) return ToolFormat::kHermes;
  if (has("<|python_tag|>") || (model_type == "llama" && has("\"parameters\":"))) return ToolFormat::kLlama3;
  return ToolFormat::kNone;
}

}  // namespace lk
