// SPDX-License-Identifier: Apache-2.0
// Finds tool calls in a growing answer, in the form the model's family writes them (tool_table.h):
//   Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
//   Llama 3        {"name": ..., "parameters": {...}} as the whole answer, or after <|python_tag|>; more after ';'
//   Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name[ARGS]{...}
//   Qwen3-Coder    <tool_call><function=name><parameter=key>value</parameter></function></tool_call>
//   Llama 3.2, 4   [name(key="value", ...), ...] as the whole answer, or after <|python_tag|>
//   Granite        <|tool_call|>[{"name": ..., "arguments": {...}}, ...]
//   Phi-4          functools[{"name": ..., "arguments": {...}}, ...] or <|tool_call|>[...]<|/tool_call|>
// What comes out depends on the text only, not on how it was cut into pieces. Nothing is lost: text that is not a call,
// or turns out not to be one before its name and the start of its arguments are read, is content; what goes wrong later
// stays in the arguments, as it was written. Only white space (and separators) between calls is dropped. Of an answer
// that a grammar made a call, what is cut off before its name is known is no content either.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/openai/call_body.h"
#include "lk/serve/openai/json_scanner.h"
#include "lk/serve/openai/openai.h"
#include "lk/serve/openai/tool_table.h"
#include "lk/serve/openai/xml_call.h"

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
  std::string forced_name = {};           // not empty: all is the arguments of this function
  bool may_be_empty = false;              // then: no text is a call, too
  std::vector<std::string> names = {};    // of the functions; calls without a tag are calls only with one of these
  bool forced = false;                    // a grammar makes the answer a call: there is no content
  std::shared_ptr<const ParameterKinds> kinds = nullptr;  // of the functions; null: all parameters are texts
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
    kStart,   // after a tag
    kItem,    // in a list, before a call
    kBody,    // in a call
    kNext,    // in a list, after a call
    kName,    // Mistral: in the name, then in [CALL_ID]...[ARGS], then before '{'
    kArgs,    // Mistral: in the arguments that follow a name
    kClose,   // before what closes calls
    kBroken,  // in arguments that went wrong: up to what closes calls, or the end
  };
  void run(ToolDeltas& out);
  void step(char c, ToolDeltas& out);
  void text(char c, ToolDeltas& out);
  void content(std::string_view text, ToolDeltas& out);
  void plain(char c, ToolDeltas& out);
  void start(char c, ToolDeltas& out);
  void item(char c, ToolDeltas& out);
  void next(char c);
  void body(char c, ToolDeltas& out);
  void close(char c);
  void name(char c, ToolDeltas& out);
  void args(char c, ToolDeltas& out);
  void broken(char c, ToolDeltas& out);
  void found_tag(ToolDeltas& out);
  bool begins_call(char c) const;
  void start_call(char c, ToolDeltas& out);
  void begin(const std::string& name, ToolDeltas& out);
  void arguments(std::string_view piece, ToolDeltas& out);
  void end_call();
  void read_again(std::string_view text);
  void give_back(ToolDeltas& out);
  bool is_gap(char c) const { return is_json_space(c) || (num_calls_ > 0 && row_->gap.find(c) != std::string::npos); }
  Mode after_calls() const { return row_->close.empty() ? Mode::kText : Mode::kClose; }

  ToolSyntax syntax_;
  const ToolRow* row_;
  Mode mode_ = Mode::kText;
  std::string input_;  // from next_ on: not yet seen, or given back to be seen again
  size_t next_ = 0;
  std::string held_;      // what may become a tag
  std::string gap_;       // white space at the start or after a call
  bool at_gap_ = true;    // only gaps since the start or the last call
  std::string raw_;       // of the call not begun yet: what to give back
  size_t tag_bytes_ = 0;  // of raw_: its tag, which is not looked at again
  std::unique_ptr<CallBody> body_;
  JsonScanner scanner_;
  std::string name_, header_;
  bool in_list_ = false, bare_ = false;
  int num_calls_ = 0, num_given_back_ = 0;
};

}  // namespace lk::openai
