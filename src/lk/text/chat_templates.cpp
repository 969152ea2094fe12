// SPDX-License-Identifier: Apache-2.0
#include "lk/text/chat_templates.h"

#include <algorithm>

#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include <fmt/ranges.h>

namespace lk {
namespace {

namespace json = boost::json;

// Whether the word stands in the source by itself: "tools", not "tools_in_user_message".
bool has_word(std::string_view source, std::string_view word) {
  const auto part = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  for (size_t at = source.find(word); at != source.npos; at = source.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || !part(source[at - 1])) && (end == source.size() || !part(source[end]))) return true;
  }
  return false;
}

constexpr TemplateLimits kProbeLimits{.max_steps = 100'000, .max_time = std::chrono::milliseconds(100)};

// Whether the template prints the text of a list of parts in a message of this role, and not the list itself, nor
// nothing.
bool takes_list(const ChatTemplate& body, std::string_view role) {
  constexpr std::string_view kMark = "lorikeet-part-mark";
  const json::object user{{"role", "user"}, {"content", "question"}};
  const json::array parts{{{"type", "text"}, {"text", json::string_view(kMark)}}};
  const json::object probed{{"role", json::string_view(role)}, {"content", parts}};
  json::array messages;
  if (role == "system") messages = {probed, user};
  if (role == "user") messages = {probed};
  if (role == "assistant") messages = {user, probed};
  if (role == "tool") {
    const json::object call{
        {"id", "a1b2c3d4e"}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", json::object()}}}};
    json::object result = probed;
    result["tool_call_id"] = "a1b2c3d4e";
    result["name"] = "f";
    messages = {user, {{"role", "assistant"}, {"content", ""}, {"tool_calls", json::array{call}}}, result};
  }
  const Result<std::string> text = body.render({{"messages", messages}}, kProbeLimits);
  if (!text.ok()) return false;
  const size_t at = text->find(kMark);
  if (at == text->npos) return false;
  // A list that is printed as such shows the key in quotes before the text.
  const std::string_view before = std::string_view(*text).substr(0, at);
  return !before.ends_with("'text': '") && !before.ends_with("\"text\": \"") && !before.ends_with("\"text\":\"");
}

ChatTemplates::Entry make_entry(std::string name, std::shared_ptr<const ChatTemplate> body,
                                std::string_view model_type) {
  const std::string& source = body->source();
  ChatTemplates::Entry entry{.name = std::move(name),
                             .body = body,
                             .tool_format = detect_tool_format(model_type, source),
                             .reasoning = detect_reasoning_format(source),
                             .reads_tools = has_word(source, "tools"),
                             .list_roles = {}};
  for (const char* role : {"system", "user", "assistant", "tool"})
    if (takes_list(*body, role)) entry.list_roles.emplace_back(role);
  return entry;
}

// {"function": {"name"}}, or {"name"}: templates of some families take tools so.
const json::value* tool_name(const json::value& tool) {
  const json::object* object = tool.if_object();
  const json::value* function = object ? object->if_contains("function") : nullptr;
  if (function && function->is_object()) object = &function->get_object();
  const json::value* name = object ? object->if_contains("name") : nullptr;
  return name && name->is_string() ? name : nullptr;
}

// What was thought before an answer has three names; templates read one of them.
void name_reasoning(json::object& message) {
  const json::value* reasoning = nullptr;
  for (const char* key : {"reasoning_content", "thinking", "reasoning"})
    if (const json::value* given = message.if_contains(key); reasoning == nullptr && given && !given->is_null())
      reasoning = given;
  if (reasoning == nullptr) return;
  const json::value copy = *reasoning;
  if (!message.contains("thinking")) message["thinking"] = copy;
  message["reasoning_content"] = copy;
  message["reasoning"] = copy;
}

// What templates of all kinds can print: a content, and arguments that are objects.
bool make_tolerable(json::array& messages) {
  bool changed = false;
  for (json::value& value : messages) {
    json::object& message = value.get_object();
    if (!message.contains("content")) {
      message["content"] = "";
      changed = true;
    }
    json::value* calls = message.if_contains("tool_calls");
    if (calls == nullptr || !calls->is_array()) continue;
    for (json::value& call : calls->get_array()) {
      json::object* object = call.if_object();
      json::value* function = object ? object->if_contains("function") : nullptr;
      json::value* arguments =
          function && function->is_object() ? function->get_object().if_contains("arguments") : nullptr;
      if (arguments == nullptr || arguments->is_object()) continue;
      *arguments = json::object{{"arguments", *arguments}};
      changed = true;
    }
  }
  return changed;
}

}  // namespace

std::string content_text(const json::value& content) {
  std::string text;
  if (const json::string* whole = content.if_string()) return {whole->data(), whole->size()};
  if (!content.is_array()) return text;
  for (size_t k = 0; k < content.get_array().size(); ++k) {
    const json::object* part = content.get_array()[k].if_object();
    const json::value* piece = part ? part->if_contains("text") : nullptr;
    if (k > 0) text += '\n';
    if (piece && piece->is_string()) text += std::string_view(piece->get_string());
  }
  return text;
}

Result<ChatTemplate::Marked> ChatTemplates::Entry::render(Conversation conversation) const {
  for (json::value& value : conversation.messages) {
    if (!value.is_object()) return invalid_argument("a message must be an object");
    json::object& message = value.get_object();
    name_reasoning(message);
    json::value* content = message.if_contains("content");
    const json::value* role = message.if_contains("role");
    const bool list = content != nullptr && content->is_array() && role != nullptr && role->is_string();
    if (list && std::ranges::find(list_roles, std::string_view(role->get_string())) == list_roles.end())
      *content = content_text(*content);
  }
  json::object& variables = conversation.variables;
  variables["messages"] = std::move(conversation.messages);
  variables["add_generation_prompt"] = conversation.add_generation_prompt;
  if (!conversation.tools.empty()) variables["tools"] = conversation.tools;
  Result<ChatTemplate::Marked> rendered = body->render_marked(variables);
  if (!rendered.ok() && make_tolerable(variables["messages"].get_array())) {
    if (Result<ChatTemplate::Marked> again = body->render_marked(variables); again.ok()) rendered = std::move(again);
  }
  return rendered;
}

// A name may stand in the text by chance; but a template that drops one tool and shows the others is not known.
Status ChatTemplates::Entry::check_tools(const json::array& tools, std::string_view text) const {
  if (tools.empty()) return {};
  const auto dropped = [&](std::string_view what) {
    return invalid_argument("the chat template \"{}\" does not show the model {}", name, what);
  };
  if (!reads_tools) return dropped("any tools; send none, or use a model that is made for them");
  for (const json::value& tool : tools) {
    const json::value* called = tool_name(tool);
    if (called != nullptr && text.find(std::string_view(called->get_string())) == text.npos)
      return dropped(fmt::format("the tool \"{}\" in this conversation", std::string_view(called->get_string())));
  }
  return {};
}

Result<std::shared_ptr<const ChatTemplates>> ChatTemplates::parse(const TokenizerConfig& config,
                                                                  std::string_view model_type) {
  if (config.templates.empty()) return std::shared_ptr<const ChatTemplates>();
  auto set = std::make_shared<ChatTemplates>();
  const auto variables = config.variables();
  for (const TokenizerConfig::Template& found : config.templates) {
    LK_ASSIGN_OR_RETURN(const std::shared_ptr<const ChatTemplate> body,
                        ChatTemplate::parse(found.source, found.where, variables));
    set->entries_.push_back(make_entry(found.name, body, model_type));
  }
  return std::shared_ptr<const ChatTemplates>(std::move(set));
}

std::shared_ptr<const ChatTemplates> ChatTemplates::of(std::shared_ptr<const ChatTemplate> body) {
  if (body == nullptr) return nullptr;
  auto set = std::make_shared<ChatTemplates>();
  set->entries_.push_back(make_entry("default", std::move(body), ""));
  return set;
}

std::shared_ptr<const ChatTemplates> ChatTemplates::with_variables(
    const std::vector<std::pair<std::string, std::string>>& variables) const {
  auto set = std::make_shared<ChatTemplates>(*this);
  for (Entry& entry : set->entries_) entry.body = entry.body->with_variables(variables);
  return set;
}

Result<const ChatTemplates::Entry*> ChatTemplates::choose(std::string_view name, bool tools) const {
  const auto find = [&](std::string_view wanted) -> const Entry* {
    const auto at = std::ranges::find(entries_, wanted, &Entry::name);
    return at == entries_.end() ? nullptr : &*at;
  };
  const auto names = [&] {
    std::vector<std::string_view> all;
    for (const Entry& entry : entries_) all.push_back(entry.name);
    return fmt::format("{}", fmt::join(all, ", "));
  };
  if (!name.empty()) {
    if (const Entry* entry = find(name)) return entry;
    return invalid_argument("the model has no chat template of this name; it has {}", names());
  }
  if (const Entry* entry = tools ? find("tool_use") : nullptr) return entry;
  if (const Entry* entry = find("default")) return entry;
  return invalid_argument("the model has several chat templates and none is the default: name one of {}", names());
}

}  // namespace lk
