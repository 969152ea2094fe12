// SPDX-License-Identifier: Apache-2.0
// Anthropic's Messages API: bodies told as chat requests. Shapes: docs.anthropic.com/en/api/messages.
#include <boost/json.hpp>

#include "lk/serve/openai/as_chat.h"

namespace lk {
namespace openai {
namespace {

namespace json = boost::json;

constexpr std::string_view kTextBlocks[] = {"text"};

class MessagesReader {
 public:
  MessagesReader(RequestFields& fields, uint64_t form, json::storage_ptr storage)
      : fields_(fields), form_(form), storage_(storage), draft_(storage) {}

  ApiResult<GenerateRequest> read(const ApiDefaults& defaults) {
    draft_.take_shared(fields_, form_);
    if (const json::value* system = fields_.find("system"))
      draft_.add_message({{{"role", "system"}, {"content", text_of(*system, "system")}}, storage_}, "system");
    read_turns();
    if (form_ == kMessagesForm) {
      if (!fields_.has("max_tokens")) fields_.fail("max_tokens", "is missing");
      copy_field("max_tokens", "max_tokens");
      copy_field("stop_sequences", "stop");
      read_requester();
    }
    read_tools();
    read_choice();
    read_thinking();
    read_output();
    return draft_.read(Endpoint::kMessages, defaults, fields_, std::move(ignored_));
  }

 private:
  JsonErrors& errors() { return fields_.errors(); }

  void copy_field(RequestFields::Name name, std::string_view chat) {
    if (const json::value* value = fields_.find(name)) draft_.put(chat, *value, std::string(fields_.row(name).name));
  }
  static void copy(RequestFields& from, RequestFields::Name name, json::object& to, std::string_view key) {
    if (const json::value* value = from.find(name)) to[key] = *value;
  }

  // A text, or text blocks; one of them is a text.
  json::value text_of(const json::value& content, const std::string& path) {
    json::value told = content_as_chat(content, path, kBlockForm, kTextBlocks, errors(), ignored_);
    return simpler(std::move(told));
  }
  static json::value simpler(json::value content) {
    const json::array* parts = content.if_array();
    if (parts == nullptr || parts->size() != 1 || !(*parts)[0].is_object()) return content;
    const json::object& part = (*parts)[0].get_object();
    const json::value* text = part.if_contains("text");
    if (text == nullptr || !text->is_string() || part.at("type") != "text") return content;
    return json::value(*text, content.storage());
  }

  void read_turns() {
    const json::array* turns = fields_.array("messages");
    if (turns == nullptr || turns->empty()) return fields_.fail("messages", "must be a list with at least one message");
    for (size_t i = 0; i < turns->size() && !fields_.failed(); ++i) {
      const std::string path = fmt::format("messages[{}]", i);
      const json::object* turn = (*turns)[i].if_object();
      if (turn == nullptr)
        return errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind((*turns)[i])));
      RequestFields fields(*turn, kTurnForm, path, errors());
      read_turn(fields, path, i + 1 == turns->size());
      add_ignored(fields, ignored_);
    }
  }

  void read_turn(RequestFields& turn, const std::string& path, bool is_last) {
    std::string role;
    turn.read("role", role);
    if (role != "user" && role != "assistant" && role != "system")
      return turn.fail("role", "{}", role.empty() ? "is missing" : "must be user, assistant or system");
    const json::value* content = turn.find("content");
    if (content == nullptr) return turn.fail("content", "is missing");
    said_ = json::object({{"role", role}}, storage_);
    path_ = path;
    if (content->is_array()) {
      const json::array& blocks = content->get_array();
      for (size_t i = 0; i < blocks.size() && !fields_.failed(); ++i)
        read_block(blocks[i], role, fmt::format("{}.content[{}]", path, i));
    } else if (content->is_string()) {
      said_["content"] = *content;
    } else {
      return turn.wrong_kind("content", "a string or a list of blocks", *content);
    }
    const bool spoke = said_.contains("content") && !said_.contains("tool_calls");
    // A turn of the user may have nothing but results of tools in it.
    if (said_.size() > 1 || content->is_string() || content->get_array().empty()) flush();
    if (is_last && role == "assistant" && spoke && !draft_.has("add_generation_prompt") &&
        !draft_.has("continue_final_message"))
      draft_.put("continue_final_message", true, path);
  }

  // What was said so far is a message of its own.
  void flush() {
    const json::value role(said_.at("role"), storage_);
    if (json::value* content = said_.if_contains("content")) {
      *content = simpler(std::move(*content));
    } else if (!said_.contains("tool_calls") && !said_.contains("reasoning_content")) {
      said_["content"] = "";
    }
    draft_.add_message(std::move(said_), path_);
    said_ = json::object({{"role", role}}, storage_);
  }

  json::array& list_in(json::object& object, std::string_view key) {
    json::value& value = object[key];
    if (!value.is_array()) value.emplace_array();
    return value.get_array();
  }

  void read_block(const json::value& value, const std::string& role, const std::string& path) {
    const json::object* object = value.if_object();
    if (object == nullptr)
      return errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(value)));
    RequestFields block(*object, kBlockForm, path, errors());
    const json::value* type = block.find("type");
    const std::string_view kind = type != nullptr && type->is_string() ? std::string_view(type->get_string()) : "";
    if (kind == "text") {
      std::string text;
      if (!block.has("text")) return block.fail("text", "is missing");
      block.read("text", text);
      if (said_.contains("tool_calls")) flush();
      list_in(said_, "content").push_back({{"type", "text"}, {"text", text}});
    } else if ((kind == "thinking" || kind == "redacted_thinking") && role == "assistant") {
      std::string thoughts;
      block.read("thinking", thoughts);
      if (said_.contains("tool_calls") || said_.contains("content")) flush();
      json::value& all = said_["reasoning_content"];
      all = (all.is_string() ? std::string(all.get_string()) : std::string()) + thoughts;
      if (thoughts.empty() && all.get_string().empty()) said_.erase("reasoning_content");
    } else if (kind == "tool_use" && role == "assistant") {
      read_use(block, path);
    } else if (kind == "tool_result" && role == "user") {
      read_result(block, path);
    } else {
      return block.fail(
          "type", "is {}: {}", kind.empty() ? "missing" : kind.substr(0, 32),
          kind == "image" || kind == "document" ? "the model takes text only" : "there is no such block here");
    }
    block.refuse_others();
    add_ignored(block, ignored_);
  }

  void read_use(RequestFields& block, const std::string& path) {
    json::object function(storage_), call({{"type", "function"}}, storage_);
    copy(block, "name", function, "name");
    copy(block, "id", call, "id");
    if (const json::value* input = block.find("input")) {
      if (!input->is_object()) return block.wrong_kind("input", "an object", *input);
      function["arguments"] = *input;
    }
    call["function"] = std::move(function);
    json::array& calls = list_in(said_, "tool_calls");
    calls.emplace_back(std::move(call));
    const std::string at = fmt::format("{}.tool_calls[{}]", draft_.next_path(), calls.size() - 1);
    draft_.rename(at, path);
    draft_.rename(at + ".function", path);
    draft_.rename(at + ".function.arguments", path + ".input");
  }

  void read_result(RequestFields& block, const std::string& path) {
    if (said_.contains("content")) flush();
    json::object message({{"role", "tool"}, {"content", ""}}, storage_);
    copy(block, "tool_use_id", message, "tool_call_id");
    if (const json::value* content = block.find("content")) message["content"] = text_of(*content, path + ".content");
    const std::string at = draft_.add_message(std::move(message), path);
    draft_.rename(at + ".tool_call_id", path + ".tool_use_id");
  }

  void read_tools() {
    const json::array* tools = fields_.array("tools");
    if (tools == nullptr) return;
    json::array told(storage_);
    for (size_t i = 0; i < tools->size(); ++i) {
      const std::string path = fmt::format("tools[{}]", i);
      const json::object* tool = (*tools)[i].if_object();
      if (tool == nullptr)
        return errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind((*tools)[i])));
      RequestFields fields(*tool, kInputToolForm, path, errors());
      std::string type = "custom";
      fields.read("type", type);
      if (!fields.has("input_schema")) fields.fail("input_schema", "is missing");
      json::object function(storage_);
      copy(fields, "name", function, "name");
      copy(fields, "description", function, "description");
      copy(fields, "input_schema", function, "parameters");
      copy(fields, "strict", function, "strict");
      fields.refuse_others();
      add_ignored(fields, ignored_);
      told.push_back({{"type", "function"}, {"function", std::move(function)}});
      draft_.rename(path + ".function", path);
      draft_.rename(path + ".function.parameters", path + ".input_schema");
    }
    draft_.put("tools", std::move(told), "tools");
  }

  void read_choice() {
    const json::object* choice = fields_.object("tool_choice");
    if (choice == nullptr) return;
    RequestFields fields(*choice, kWhichToolForm, "tool_choice", errors());
    std::string type, name;
    bool alone = false;
    fields.read("type", type);
    fields.read("name", name);
    fields.read("disable_parallel_tool_use", alone);
    add_ignored(fields, ignored_);
    if (type.empty()) return fields.fail("type", "is missing");
    if (alone) draft_.put("parallel_tool_calls", false, "tool_choice.disable_parallel_tool_use");
    json::value told(json::string_view(type == "any" ? "required" : type), storage_);
    if (type == "tool") {
      if (name.empty()) return fields.fail("name", "is missing");
      told = {{"type", "function"}, {"function", {{"name", name}}}};
    }
    draft_.put("tool_choice", std::move(told), "tool_choice");
    draft_.rename("tool_choice.function", "tool_choice");
  }

  void read_thinking() {
    const json::object* config = fields_.object("thinking");
    if (config == nullptr) return;
    RequestFields fields(*config, kThinkingForm, "thinking", errors());
    std::string type, display = "summarized";
    fields.read("type", type);
    fields.read("display", display);
    int64_t budget = 0;
    fields.read("budget_tokens", budget);
    add_ignored(fields, ignored_);
    if (type.empty()) return fields.fail("type", "is missing");
    if (type != "adaptive") draft_.set_thinking(type == "enabled");
    if (budget > 0 && type == "enabled" && form_ == kMessagesForm)
      draft_.put("thinking_token_budget", budget, "thinking.budget_tokens");
    if ((type == "disabled" || display == "omitted") && !draft_.has("include_reasoning"))
      draft_.put("include_reasoning", false, "thinking");
  }

  void read_output() {
    const json::object* config = fields_.object("output_config");
    const json::object* older = fields_.object("output_format");
    const json::object* format = nullptr;
    if (config != nullptr) {
      RequestFields fields(*config, kOutputConfigForm, "output_config", errors());
      if (const json::value* effort = fields.find("effort"))
        draft_.put("reasoning_effort", *effort, "output_config.effort");
      format = fields.object("format");
      add_ignored(fields, ignored_);
    }
    if (format != nullptr && older != nullptr) return fields_.fail("output_format", "is a second format");
    if (format != nullptr) read_format(*format, "output_config.format");
    if (older != nullptr) read_format(*older, "output_format");
  }

  void read_format(const json::object& format, const std::string& path) {
    RequestFields fields(format, kOutputFormatForm, path, errors());
    std::string type;
    fields.read("type", type);
    if (type.empty()) return fields.fail("type", "is missing");
    json::object schema(storage_);
    copy(fields, "schema", schema, "schema");
    add_ignored(fields, ignored_);
    if (form_ != kMessagesForm) return;
    json::object told({{"type", "json_schema"}}, storage_);
    told["json_schema"] = std::move(schema);
    draft_.put("response_format", std::move(told), path);
    draft_.rename("response_format.json_schema", path);
  }

  void read_requester() {
    const json::object* metadata = fields_.object("metadata");
    if (metadata == nullptr) return;
    RequestFields fields(*metadata, kRequesterForm, "metadata", errors());
    if (const json::value* user = fields.find("user_id"); user != nullptr && !draft_.has("user"))
      draft_.put("user", *user, "metadata.user_id");
    add_ignored(fields, ignored_);
  }

  RequestFields& fields_;
  const uint64_t form_;
  json::storage_ptr storage_;
  ChatDraft draft_;
  std::vector<std::string> ignored_;
  json::object said_;  // in the turn that is read, and no message yet
  std::string path_;   // of that turn
};

ApiResult<GenerateRequest> read_as(uint64_t form, std::string_view body, const ApiDefaults& defaults) {
  json::monotonic_resource memory;
  const ApiResult<json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, form, "", errors);
  return MessagesReader(fields, form, &memory).read(defaults);
}

}  // namespace
}  // namespace openai

ApiResult<GenerateRequest> parse_messages_request(std::string_view body, const ApiDefaults& defaults) {
  return openai::read_as(kMessagesForm, body, defaults);
}

ApiResult<GenerateRequest> parse_count_tokens_request(std::string_view body, const ApiDefaults& defaults) {
  return openai::read_as(kCountTokensForm, body, defaults);
}

}  // namespace lk
