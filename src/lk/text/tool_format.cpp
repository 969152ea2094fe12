// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tool_format.h"

namespace lk {

std::optional<ToolFormat> parse_tool_format(std::string_view name) {
  static constexpr std::string_view kNames[kNumToolFormats] = {"none",        "hermes",   "llama3",  "mistral",
                                                               "qwen3-coder", "pythonic", "granite", "phi4"};
  for (int k = 0; k < kNumToolFormats; ++k)
    if (kNames[k] == name) return static_cast<ToolFormat>(k);
  return std::nullopt;
}

// The more particular marks first: templates of one family name those of another, too.
ToolFormat detect_tool_format(std::string_view model_type, std::string_view source) {
  const auto has = [&](std::string_view mark) { return source.find(mark) != std::string_view::npos; };
  if (has("[TOOL_CALLS]")) return ToolFormat::kMistral;
  if (has("<function=") && has("<parameter=")) return ToolFormat::kQwen3Coder;
  if (has("<|tool|>") || has("functools[")) return ToolFormat::kPhi4;
  if (has("<|tool_call|>")) return ToolFormat::kGranite;
  if (has("<tool_call>")) return ToolFormat::kHermes;
  if (has("[func_name1(")) return ToolFormat::kPythonic;
  if (has("<|python_tag|>") || (model_type == "llama" && has("\"parameters\":"))) return ToolFormat::kLlama3;
  return ToolFormat::kNone;
}

}  // namespace lk
