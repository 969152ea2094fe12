// SPDX-License-Identifier: Apache-2.0
// Custom tools: called with a text instead of JSON, which a grammar may describe. Models know functions, so they are
// shown one with a single argument, the text "input"; what they write of it is the input again for the client.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <boost/json/object.hpp>

#include "lk/serve/openai/json_scanner.h"
#include "lk/serve/openai/openai.h"

namespace lk::openai {

// {"type": "function", "function": {...}}, as templates and grammars of calls take it. A description of its grammar
// goes with its own.
boost::json::object custom_as_function(const CustomTool& tool, std::string_view description);
// The same of a call in a conversation: its arguments.
boost::json::object custom_arguments(std::string_view input);

// The input in a call's arguments, as they come: of {"input": "..."} the text; arguments of another shape are the input
// as they stand.
class CustomInput {
 public:
  void push(std::string_view arguments, std::string& input);
  void finish(std::string& input);  // what was held back of arguments that ended early

 private:
  enum class State { kHead, kText, kEscape, kHex, kRaw, kDone };
  void take(char c, std::string& input);
  void escaped(char c, std::string& input);
  void code_unit(uint32_t unit, std::string& input);
  void end_pair(std::string& input);
  State state_ = State::kHead;
  std::string held_;   // the head; the digits of an escape
  uint32_t high_ = 0;  // the first half of a surrogate pair, while its second is awaited
};

}  // namespace lk::openai
