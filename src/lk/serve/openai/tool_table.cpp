// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/tool_table.h"

#include <algorithm>

namespace lk::openai {

const ToolRow& tool_row(ToolFormat format) {
  using enum ToolFormat;
  static const std::vector<ToolRow> rows = {
      {},
      {.format = kHermes, .tags = {"<tool_call>"}, .object = true, .close = "</tool_call>"},
      {.format = kLlama3, .tags = {"<|python_tag|>"}, .object = true, .bare = true, .gap = ";"},
      {.format = kMistral, .tags = {"[TOOL_CALLS]"}, .object = true, .list = true, .named = true},
      {.format = kQwen3Coder,
       .tags = {"<tool_call>", "<function="},
       .body = ToolRow::Body::kXml,
       .object = true,
       .close = "</tool_call>"},
      {.format = kPythonic,
       .tags = {"<|python_tag|>", "<|python_start|>"},
       .body = ToolRow::Body::kPython,
       .list = true,
       .bare = true,
       .close = "<|python_end|>"},
      {.format = kGranite,
       .tags = {"<|tool_call|>", "<tool_call>"},
       .object = true,
       .list = true,
       .close = "</tool_call>"},
      {.format = kPhi4,
       .tags = {"functools", "<|tool_call|>"},
       .object = true,
       .list = true,
       .close = "<|/tool_call|>"},
  };
  return *std::ranges::find(rows, format, &ToolRow::format);
}

}  // namespace lk::openai
