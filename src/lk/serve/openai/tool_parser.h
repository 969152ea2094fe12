// SPDX-License-Identifier: Apache-2.0
// Finds tool calls in a growing answer, in the form the model's family writes them:
//   Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
//   Llama 3        {"name": ..., "parameters": {...}} as the whole answer, or after <|python_tag|>; more after ';'
//   Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name[ARGS]{...}
// What comes out depends on the text only, not on how it was cut into pieces. Nothing is lost: text that is not a call,
// or turns out not to be one before its name and the start of its arguments are read, is content; what goes wrong later
// stays in the arguments, as it was written. Only white space (and separators) between calls is dropped.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/openai/call_object.h"
#include "lk/serve/openai/openai.h"

namespace lk::openai {

struct ToolDelta {
  enum class Kind { kContent, kBegin, kArguments };
  Kind kind;
  int call = 0;      // from 0; not for content
  std::string text;  // content, the function's name, a piece of the arguments
};
using ToolDeltas = std::vector<ToolDelta>;

struct ToolSyntax {
  ToolFormat format = ToolFormat::kNone;  // kNone: all is content
  std::string forced_name;                // not empty: all is the arguments of this function
  std::vector<std::string> names;         // of the functions; a bare object of Llama 3 is a call only with one of these
};

class ToolCallParser {
 public:
  explicit ToolCallParser(ToolSyntax syntax);
  void push(std::string_view text, ToolDeltas& out);
  void finish(ToolDeltas& out);
  int num_calls() const { return num_calls_; }

 private:
  enum class Mode {
    kText,
    kObject,  // in {"name": ...}
    kClose,   // Hermes: before </tool_call>
    kStart,   // Mistral: after [TOOL_CALLS]
    kName,    // Mistral: in the name, then in [CALL_ID]...[ARGS], then before '{'
    kItem,    // Mistral: before an object of the list
    kNext,    // Mistral: after an object of the list
    kArgs,    // Mistral: in the arguments that follow a name
    kBroken,  // in arguments that went wrong: up to the closing tag, or the end
  };
  void run(ToolDeltas& out);
  void step(char c, ToolDeltas& out);
  void text(char c, ToolDeltas& out);
  void plain(char c, ToolDeltas& out);
  void object(char c, ToolDeltas& out);
  void close(char c, ToolDeltas& out);
  void list(char c, ToolDeltas& out);
  void name(char c, ToolDeltas& out);
  void args(char c, ToolDeltas& out);
  void broken(char c, ToolDeltas& out);
  void start_object(bool bare);
  void begin(const std::string& name, ToolDeltas& out);
  void arguments(std::string_view piece, ToolDeltas& out);
  void end_call();
  void give_back(ToolDeltas& out);
  bool is_gap(char c) const {
    return is_json_space(c) || (c == ';' && num_calls_ > 0 && syntax_.format == ToolFormat::kLlama3);
  }

  ToolSyntax syntax_;
  std::string_view tag_;
  Mode mode_ = Mode::kText;
  std::string input_;  // from next_ on: not yet seen, or given back to be seen again
  size_t next_ = 0;
  std::string held_;      // what may become a tag
  std::string gap_;       // white space at the start or after a call
  bool at_gap_ = true;    // only gaps since the start or the last call
  std::string raw_;       // of the call not begun yet: what to give back
  size_t tag_bytes_ = 0;  // of raw_: its tag, which is not looked at again
  std::optional<CallObject> object_;
  JsonScanner scanner_;
  std::string name_, header_;
  bool in_list_ = false;
  int num_calls_ = 0, num_given_back_ = 0;
};

}  // namespace lk::openai
