// SPDX-License-Identifier: Apache-2.0
// How the families of models write tool calls, a row each: what ToolCallParser reads by.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lk/text/tool_format.h"

namespace lk::openai {

struct ToolRow {
  enum class Body : uint8_t { kJson, kXml, kPython };
  ToolFormat format = ToolFormat::kNone;
  std::vector<std::string> tags;  // what calls begin with
  Body body = Body::kJson;        // of one call
  bool object = false;            // a tag may stand before {"name": ...}
  bool list = false;              // before [call, call]
  bool named = false;             // before name[ARGS]{...}
  bool bare = false;              // an answer may begin with calls without a tag: an object, or a list
  std::string close;              // may stand behind a call, or a list
  std::string gap;                // beside white space, between calls
};
const ToolRow& tool_row(ToolFormat format);

}  // namespace lk::openai
