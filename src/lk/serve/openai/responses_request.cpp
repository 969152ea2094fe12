// SPDX-License-Identifier: Apache-2.0
// OpenAI's Responses API without storage: bodies told as chat requests. Shapes: platform.openai.com/docs/api-reference/
// responses.
#include <algorithm>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/openai/as_chat.h"

namespace lk {
namespace openai {
namespace {

namespace json = boost::json;

constexpr std::string_view kTextParts[] = {"input_text", "output_text", "text"};

class ResponsesReader {
 public:
  ResponsesReader(RequestFields& fields, json::storage_ptr storage)
      : fields_(fields), storage_(storage), draft_(storage) {}

  ApiResult<GenerateRequest> read(const ApiDefaults& defaults) {
    draft_.take_shared(fields_, kResponsesForm);
    draft_.rename("messages", "input");
    read_instructions();
    read_input();
    read_tools();
    read_choice();
    read_text();
    read_effort();
    read_logprobs();
    if (const json::value* most = fields_.find("max_output_tokens"))
      draft_.put("max_completion_tokens", *most, "max_output_tokens");
    std::string truncation = "disabled";
    fields_.read("truncation", truncation);
    const json::object* metadata = fields_.object("metadata");
    if (metadata != nullptr && metadata->size() > static_cast<size_t>(fields_.row("metadata").max_count))
      fields_.fail("metadata", "has {} entries, at most {} are allowed", metadata->size(),
                   fields_.row("metadata").max_count);
    if (metadata != nullptr) check_metadata(*metadata);
    const ApiResult<GenerateRequest> read = draft_.read(Endpoint::kResponses, defaults, fields_, std::move(ignored_));
    if (!read.ok()) return read.error;
    GenerateRequest request = std::move(*read.value);
    request.drops_oldest = truncation == "auto";
    request.repeated = repeated(request, truncation);
    return request;
  }

 private:
  JsonErrors& errors() { return fields_.errors(); }

  void read_instructions() {
    std::string text;
    fields_.read("instructions", text);
    if (!text.empty()) draft_.add_message({{{"role", "system"}, {"content", text}}, storage_}, "instructions");
  }

  void read_input() {
    const json::value* input = fields_.find("input");
    if (input == nullptr) return fields_.fail("input", "is missing");
    if (input->is_string()) {
      draft_.add_message({{{"role", "user"}, {"content", *input}}, storage_}, "input");
      return;
    }
    const json::array* items = input->if_array();
    if (items == nullptr) return fields_.wrong_kind("input", "a string or a list of items", *input);
    if (items->empty()) return fields_.fail("input", "must be a string or a list with at least one item");
    for (size_t i = 0; i < items->size() && !fields_.failed(); ++i) {
      const std::string path = fmt::format("input[{}]", i);
      const json::object* item = object_at(*items, i, path);
      if (item == nullptr) return;
      RequestFields fields(*item, kItemForm, path, errors());
      read_item(fields, path);
      fields.refuse_others();
      add_ignored(fields, ignored_);
    }
  }

  void read_item(RequestFields& item, const std::string& path) {
    std::string type = "message";
    item.read("type", type);
    if (item.failed()) return;
    if (type == "message") return read_message(item, path);
    if (type == "reasoning") return read_thoughts(item, path);
    if (type == "function_call") return read_call(item, path, false);
    if (type == "custom_tool_call") return read_call(item, path, true);
    draft_.open(false);
    json::object message({{"role", "tool"}}, storage_);
    copy(item, "call_id", message, "tool_call_id");
    if (const json::value* output = item.find("output")) message["content"] = told(*output, path + ".output");
    const std::string at = draft_.add_message(std::move(message), path);
    draft_.rename(at + ".tool_call_id", path + ".call_id");
    draft_.rename(at + ".content", path + ".output");
  }

  void read_message(RequestFields& item, const std::string& path) {
    const json::value* role = item.find("role");
    const json::value* content = item.find("content");
    json::value text(storage_);
    if (content != nullptr) text = told(*content, path + ".content");
    if (role != nullptr && *role == "assistant") {
      json::object& turn = turn_for("content", path);
      if (content != nullptr) turn["content"] = std::move(text);
      return draft_.rename(draft_.last_path() + ".content", path + ".content");
    }
    draft_.open(false);
    json::object message(storage_);
    if (role != nullptr) message["role"] = *role;
    if (content != nullptr) message["content"] = std::move(text);
    draft_.add_message(std::move(message), path);
  }

  // What was thought: the text itself, or else its summary.
  void read_thoughts(RequestFields& item, const std::string& path) {
    std::string thoughts;
    for (const char* key : {"content", "summary"}) {
      const json::value* parts = static_cast<JsonFields&>(item).find(key);
      if (parts == nullptr) continue;
      const json::array* list = parts->if_array();
      if (list == nullptr) return item.wrong_kind(key, "a list of texts", *parts);
      for (size_t i = 0; i < list->size(); ++i) {
        const std::string where = fmt::format("{}.{}[{}]", path, key, i);
        const json::object* part = object_at(*list, i, where);
        if (part == nullptr) return;
        RequestFields fields(*part, kItemPartForm, where, errors());
        std::string type, text;
        fields.read("type", type);
        fields.read("text", text);
        thoughts += text;
      }
      if (!thoughts.empty()) break;
    }
    if (thoughts.empty()) return;
    turn_for("reasoning_content", path)["reasoning_content"] = thoughts;
  }

  void read_call(RequestFields& item, const std::string& path, bool custom) {
    const char* const type = custom ? "custom" : "function";
    json::object called(storage_), call({{"type", type}}, storage_);
    copy(item, "name", called, "name");
    if (custom)
      copy(item, "input", called, "input");
    else
      copy(item, "arguments", called, "arguments");
    copy(item, "call_id", call, "id");
    call[type] = std::move(called);
    json::object& turn = turn_for("", path);
    json::value& calls = turn["tool_calls"];
    if (!calls.is_array()) calls.emplace_array();
    calls.get_array().emplace_back(std::move(call));
    const std::string at = fmt::format("{}.tool_calls[{}]", draft_.last_path(), calls.get_array().size() - 1);
    draft_.rename(at, path);
    draft_.rename(at + ".id", path + ".call_id");
    draft_.rename(fmt::format("{}.{}", at, type), path);
  }

  // The assistant's message that this goes into: thoughts, then text, then calls.
  json::object& turn_for(std::string_view key, const std::string& path) {
    json::object* turn = draft_.open_turn();
    const bool full = turn != nullptr && !key.empty() &&
                      (turn->contains("content") || turn->contains("tool_calls") || turn->contains(key));
    if (turn == nullptr || full) {
      draft_.add_message({{{"role", "assistant"}}, storage_}, path);
      draft_.open(true);
    }
    return *draft_.open_turn();
  }

  json::value told(const json::value& content, const std::string& path) {
    return content_as_chat(content, path, kItemPartForm, kTextParts, errors(), ignored_);
  }

  void copy(RequestFields& from, RequestFields::Name name, json::object& to, std::string_view key) {
    if (const json::value* value = from.find(name)) to[key] = *value;
  }

  // {"type": "function", "name", ...} is {"type": "function", "function": {"name", ...}} in chat, and so of custom
  // tools.
  void read_tools() {
    const json::array* tools = fields_.array("tools");
    if (tools == nullptr) return;
    json::array nested(storage_);
    for (size_t i = 0; i < tools->size(); ++i) {
      const std::string path = fmt::format("tools[{}]", i);
      const json::object* tool = object_at(*tools, i, path);
      if (tool == nullptr) return;
      RequestFields fields(*tool, kFlatToolForm, path, errors());
      std::string type;
      fields.read("type", type);
      json::object inner(storage_);
      copy(fields, "name", inner, "name");
      copy(fields, "description", inner, "description");
      if (type == "custom") {
        read_format(fields, inner, path);
      } else {
        copy(fields, "parameters", inner, "parameters");
        copy(fields, "strict", inner, "strict");
      }
      add_ignored(fields, ignored_);
      nested.emplace_back(nest(fields, std::move(inner), path, path));
    }
    draft_.put("tools", std::move(nested), "tools");
  }

  // {"type": "grammar", "syntax", "definition"} is {"type": "grammar", "grammar": {"syntax", "definition"}} in chat.
  void read_format(RequestFields& tool, json::object& custom, const std::string& path) {
    const json::object* format = tool.object("format");
    if (format == nullptr) return;
    RequestFields fields(*format, kFlatFormatForm, path + ".format", errors());
    json::object outer(storage_), grammar(storage_);
    copy(fields, "type", outer, "type");
    copy(fields, "syntax", grammar, "syntax");
    copy(fields, "definition", grammar, "definition");
    if (!grammar.empty()) outer["grammar"] = std::move(grammar);
    custom["format"] = std::move(outer);
    draft_.rename(path + ".custom.format.grammar", path + ".format");
    add_ignored(fields, ignored_);
  }

  void read_choice() {
    const json::value* choice = fields_.find("tool_choice");
    if (choice == nullptr) return;
    const json::object* named = choice->if_object();
    if (named == nullptr) return draft_.put("tool_choice", *choice, "tool_choice");
    RequestFields fields(*named, kFlatChoiceForm, "tool_choice", errors());
    std::string type;
    fields.read("type", type);
    if (type != "allowed_tools")
      return draft_.put("tool_choice", read_chosen(fields, "tool_choice", "tool_choice"), "tool_choice");
    json::object allowed(storage_);
    copy(fields, "mode", allowed, "mode");
    if (const json::array* tools = fields.array("tools")) {
      json::array entries(storage_);
      for (size_t i = 0; i < tools->size(); ++i) {
        const std::string path = fmt::format("tool_choice.tools[{}]", i);
        const json::object* entry = object_at(*tools, i, path);
        if (entry == nullptr) return;
        RequestFields each(*entry, kFlatChoiceForm, path, errors());
        entries.emplace_back(read_chosen(each, fmt::format("tool_choice.allowed_tools.tools[{}]", i), path));
      }
      allowed["tools"] = std::move(entries);
    }
    draft_.put("tool_choice",
               json::object({{"type", "allowed_tools"}, {"allowed_tools", std::move(allowed)}}, storage_),
               "tool_choice");
    draft_.rename("tool_choice.allowed_tools", "tool_choice");
  }

  json::object read_chosen(RequestFields& fields, const std::string& chat_path, const std::string& path) {
    json::object inner(storage_);
    copy(fields, "name", inner, "name");
    return nest(fields, std::move(inner), chat_path, path);
  }

  // {"type", TYPE: inner}
  json::object nest(RequestFields& fields, json::object inner, const std::string& chat_path, const std::string& path) {
    json::object outer(storage_);
    std::string type;
    fields.read("type", type);
    copy(fields, "type", outer, "type");
    if (!type.empty()) {
      outer[type] = std::move(inner);
      draft_.rename(fmt::format("{}.{}", chat_path, type), path);
    }
    return outer;
  }

  const json::object* object_at(const json::array& list, size_t index, const std::string& path) {
    const json::object* object = list[index].if_object();
    if (object == nullptr)
      errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(list[index])));
    return object;
  }

  void read_text() {
    const json::object* config = fields_.object("text");
    if (config == nullptr) return;
    RequestFields text(*config, kTextConfigForm, "text", errors());
    const json::object* format = text.object("format");
    text.refuse_others();
    add_ignored(text, ignored_);
    if (format == nullptr) return;
    RequestFields fields(*format, kTextFormatForm, "text.format", errors());
    json::object outer(storage_), inner(storage_);
    copy(fields, "type", outer, "type");
    copy(fields, "name", inner, "name");
    copy(fields, "schema", inner, "schema");
    copy(fields, "strict", inner, "strict");
    copy(fields, "description", inner, "description");
    add_ignored(fields, ignored_);
    if (outer.contains("type") && outer.at("type") == "json_schema") outer["json_schema"] = std::move(inner);
    draft_.put("response_format", std::move(outer), "text.format");
    draft_.rename("response_format.json_schema", "text.format");
  }

  void read_effort() {
    const json::object* config = fields_.object("reasoning");
    if (config == nullptr) return;
    RequestFields fields(*config, kReasoningForm, "reasoning", errors());
    fields.read("effort", effort_);
    fields.refuse_others();
    add_ignored(fields, ignored_);
    if (effort_.empty()) return;
    draft_.put("reasoning_effort", json::value(json::string_view(effort_), storage_), "reasoning.effort");
    if (effort_ == "none") draft_.set_thinking(false);
  }

  void read_logprobs() {
    bool wanted = false;
    const json::array* include = fields_.array("include");
    const std::vector<std::string_view> known = split_words(fields_.row("include").detail);
    for (size_t i = 0; include != nullptr && i < include->size(); ++i) {
      const json::value& word = (*include)[i];
      if (!word.is_string() || std::ranges::find(known, std::string_view(word.get_string())) == known.end())
        return fields_.fail("include", "may only have {} in it", fmt::join(known, ", "));
      wanted |= word.get_string() == known[0];
    }
    fields_.read("top_logprobs", top_logprobs_);
    if (top_logprobs_ > 0 && !wanted) return fields_.fail("top_logprobs", "needs \"include\": [\"{}\"]", known[0]);
    if (!wanted) return;
    draft_.put("logprobs", true, "include");
    draft_.put("top_logprobs", top_logprobs_, "top_logprobs");
  }

  // As OpenAI bounds them: the answer says them again.
  void check_metadata(const json::object& metadata) {
    constexpr size_t kMaxKey = 64, kMaxValue = 512;
    for (const auto& [key, value] : metadata) {
      if (key.size() > kMaxKey)
        return fields_.fail("metadata", "has a key of {} bytes, at most {} are allowed", key.size(), kMaxKey);
      if (!value.is_string() || value.get_string().size() > kMaxValue)
        return fields_.fail("metadata", "{} is no string of at most {} bytes", std::string_view(key), kMaxValue);
    }
  }

  std::string repeated(const GenerateRequest& request, const std::string& truncation) {
    const auto given = [&](RequestFields::Name name, json::value otherwise) {
      const json::value* value = fields_.find(name);
      return value != nullptr ? *value : otherwise;
    };
    const json::object* text = fields_.object("text");
    json::object shown_text = text != nullptr ? *text : json::object();
    if (!shown_text.contains("format")) shown_text["format"] = {{"type", "text"}};
    const SamplingParams& sampling = request.prompts.at(0).sampling;
    const json::object members{
        {"background", false},
        {"instructions", given("instructions", nullptr)},
        {"max_output_tokens", given("max_output_tokens", nullptr)},
        {"max_tool_calls", nullptr},
        {"metadata", given("metadata", json::object())},
        {"parallel_tool_calls", request.parallel_tool_calls},
        {"previous_response_id", nullptr},
        {"reasoning",
         {{"effort", effort_.empty() ? json::value(nullptr) : json::value(effort_)}, {"summary", nullptr}}},
        {"service_tier", "default"},
        {"store", false},
        {"temperature", sampling.temperature},
        {"text", std::move(shown_text)},
        {"tool_choice", given("tool_choice", "auto")},
        {"tools", given("tools", json::array())},
        {"top_logprobs", top_logprobs_},
        {"top_p", sampling.top_p},
        {"truncation", truncation},
        {"user", given("user", nullptr)}};
    const std::string object = json_text(members);
    return object.substr(1, object.size() - 2);
  }

  RequestFields& fields_;
  json::storage_ptr storage_;
  ChatDraft draft_;
  std::vector<std::string> ignored_;
  std::string effort_;
  int top_logprobs_ = 0;
};

}  // namespace
}  // namespace openai

ApiResult<GenerateRequest> parse_responses_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = openai::read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kResponsesForm, "", errors);
  return openai::ResponsesReader(fields, &memory).read(defaults);
}

}  // namespace lk
