// SPDX-License-Identifier: Apache-2.0
// The chat templates of a model or an adapter, by name, and which of them a request renders.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/text/chat_template.h"
#include "lk/text/reasoning.h"
#include "lk/text/tokenizer_config.h"
#include "lk/text/tool_format.h"

namespace lk {

// A conversation as it goes into a template.
struct Conversation {
  boost::json::array messages;  // {"role", "content", ...}; content is a string, a list of parts, or not there
  boost::json::array tools;     // empty: none
  boost::json::object variables;
  bool add_generation_prompt = false;
};

// Thread safety: immutable.
class ChatTemplates {
 public:
  struct Entry {
    std::string name;
    std::shared_ptr<const ChatTemplate> body;
    ToolFormat tool_format = ToolFormat::kNone;          // in which it has the model call
    ReasoningFormat reasoning = ReasoningFormat::kNone;  // in which it has the model think
    bool reads_tools = false;                            // whether it looks at "tools" at all
    std::vector<std::string> list_roles;                 // whose content it takes as a list of parts; others get text

    // As transformers renders it, but that a list of parts reaches a template that wants text as its text, a line each,
    // and that what a model wrote itself (calls that were cut off, answers without content) is shown, where
    // transformers fails.
    Result<ChatTemplate::Marked> render(Conversation conversation) const;
    // kInvalidArgument when not every one of the tools shows in what was rendered: the model would answer as if there
    // were none, and nobody would know.
    Status check_tools(const boost::json::array& tools, std::string_view rendered) const;
  };

  // Null when the configuration has no template. Its named tokens are variables of all of them. `model_type`: of the
  // model that reads them, for detect_tool_format().
  static Result<std::shared_ptr<const ChatTemplates>> parse(const TokenizerConfig& config,
                                                            std::string_view model_type = "");
  // One template, the default.
  static std::shared_ptr<const ChatTemplates> of(std::shared_ptr<const ChatTemplate> body);
  // The same templates with these variables instead of their own.
  std::shared_ptr<const ChatTemplates> with_variables(
      const std::vector<std::pair<std::string, std::string>>& variables) const;

  // As transformers chooses: by its name; without one (""), "tool_use" for requests with tools, where it is there, else
  // "default". kInvalidArgument names those there are.
  Result<const Entry*> choose(std::string_view name, bool tools) const;
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

// The text of a list of parts, a line each, as templates that want a string get it; a string is itself.
std::string content_text(const boost::json::value& content);

}  // namespace lk
