// SPDX-License-Identifier: Apache-2.0
#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_reader.h"
#include "lk/serve/openai/custom_tools.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

// The text parts of a content list, as they came: how a template gets them is its own matter.
bool read_parts(const json::array& parts, const std::string& path, json::array& out, std::vector<std::string>& ignored,
                JsonErrors& errors) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!parts[i].is_object()) {
      errors.set(where, fmt::format("\"{}\" must be an object, is {}", where, json_kind(parts[i])));
      return false;
    }
    RequestFields part(parts[i].get_object(), kPartForm, where, errors);
    const json::value* type = part.find("type");
    const bool is_text =
        type != nullptr && type->is_string() && (type->get_string() == "text" || type->get_string() == "refusal");
    if (!is_text) {
      const std::string found =
          type != nullptr && type->is_string() ? std::string(view(type->get_string()).substr(0, 32)) : "missing";
      part.fail("type", "is {}: the model takes text only", found);
      return false;
    }
    const bool refusal = type->get_string() == "refusal";
    const json::value* text = refusal ? part.find("refusal") : part.find("text");
    if (text == nullptr || !text->is_string()) return part.fail(view(type->get_string()), "must be a string"), false;
    add_ignored(part, ignored);
    if (refusal)
      out.push_back({{"type", "text"}, {"text", *text}});
    else
      out.push_back(parts[i]);
  }
  return true;
}

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

// {"id", "type", "function": {"name", "arguments"}}, or {"id", "type": "custom", "custom": {"name", "input"}}, which
// templates get as the function that their model was shown.
bool read_call(const json::value& value, const std::string& path, json::array& out, std::vector<std::string>& ignored,
               JsonErrors& errors) {
  if (!value.is_object()) {
    errors.set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(value)));
    return false;
  }
  RequestFields fields(value.get_object(), kCallForm, path, errors);
  std::string id, type = "function";
  fields.read("id", id);
  fields.read("type", type);
  const bool custom = type == "custom";
  const json::object* function = custom ? fields.object("custom") : fields.object("function");
  if (function == nullptr) fields.fail(custom ? "custom" : "function", "is missing");
  if (fields.failed()) return false;
  RequestFields inner(*function, custom ? kCalledCustomForm : kCalledFunctionForm,
                      path + (custom ? ".custom" : ".function"), errors);
  std::string name, input;
  inner.read("name", name);
  if (name.empty()) inner.fail("name", "is missing");
  // Templates print arguments as JSON, so they get what the text says. A model's own calls come back as it wrote them:
  // cut off, lists, nothing at all.
  json::value arguments = json::object();
  if (custom) {
    inner.read("input", input);
    arguments = custom_arguments(input);
  } else if (const json::value* given = inner.find("arguments")) {
    if (given->is_object() || given->is_array()) {
      arguments = *given;
    } else if (!given->is_string()) {
      inner.wrong_kind("arguments", "a string with a JSON object", *given);
    } else if (!is_blank(view(given->get_string()))) {
      Result<json::value> parsed = read_json(view(given->get_string()));
      if (!parsed.ok() || (!parsed->is_object() && !parsed->is_array() && !parsed->is_null()))
        arguments = *given;
      else if (!parsed->is_null())
        arguments = std::move(*parsed);
    }
  }
  if (fields.failed()) return false;
  fields.mark_known("index");  // of a call as streams bring it
  add_ignored(fields, ignored);
  add_ignored(inner, ignored);
  json::object call{{"type", "function"}, {"function", {{"name", name}, {"arguments", std::move(arguments)}}}};
  if (!id.empty()) call["id"] = id;
  out.emplace_back(std::move(call));
  return true;
}

bool read_message(const json::object& message, const std::string& path, json::array& out,
                  std::vector<std::string>& ignored, JsonErrors& errors) {
  RequestFields fields(message, kMessageForm, path, errors);
  std::string role, name, tool_call_id;
  fields.read("role", role);
  if (role.empty()) fields.fail("role", "is missing");
  if (role == "function") fields.fail("role", "is \"function\", which is deprecated; use \"tool\"");
  if (role == "developer") role = "system";  // what chat templates call it
  fields.read("name", name);
  fields.read("tool_call_id", tool_call_id);
  json::object rendered{{"role", role}};
  bool thought = false;
  for (const RequestFields::Name key :
       {RequestFields::Name("reasoning_content"), RequestFields::Name("reasoning"), RequestFields::Name("thinking")}) {
    std::string reasoning;
    fields.read(key, reasoning);
    if (!reasoning.empty()) rendered[fields.row(key).name] = reasoning;
    thought |= !reasoning.empty();
  }
  fields.refuse_others();
  json::array calls;
  if (const json::array* given = fields.array("tool_calls")) {
    if (!given->empty() && role != "assistant")
      fields.fail("tool_calls", "is only allowed in messages of the assistant");
    for (size_t i = 0; i < given->size(); ++i)
      if (!read_call((*given)[i], fmt::format("{}.tool_calls[{}]", path, i), calls, ignored, errors)) return false;
  }
  std::string refusal;
  fields.read("refusal", refusal);
  const json::value* given = fields.find("content");
  if (given == nullptr) {
    // null is an answer without text, or a tool without a result; templates are told so by there being none.
    const bool null = message.contains("content") && (role == "assistant" || role == "tool");
    if (!null && (role != "assistant" || (calls.empty() && refusal.empty() && !thought)))
      fields.fail("content", "is missing");
    if (!refusal.empty()) rendered["content"] = refusal;
    if (refusal.empty() && calls.empty()) rendered["content"] = "";
  } else if (given->is_string()) {
    rendered["content"] = *given;
  } else if (given->is_array()) {
    json::array parts;
    read_parts(given->get_array(), path + ".content", parts, ignored, errors);
    rendered["content"] = std::move(parts);
  } else {
    fields.wrong_kind("content", "a string or a list of text parts", *given);
  }
  if (fields.failed()) return false;
  add_ignored(fields, ignored);
  if (!name.empty()) rendered["name"] = name;
  if (!tool_call_id.empty()) rendered["tool_call_id"] = tool_call_id;
  if (!calls.empty()) rendered["tool_calls"] = std::move(calls);
  out.emplace_back(std::move(rendered));
  return true;
}

}  // namespace

void read_messages(RequestFields& fields, TextRequest& text, std::vector<std::string>& ignored) {
  const json::array* messages = fields.array("messages");
  if (messages == nullptr || messages->empty())
    return fields.fail("messages", "must be a list with at least one message");
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    const json::value& message = (*messages)[i];
    if (!message.is_object())
      return fields.errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(message)));
    if (!read_message(message.get_object(), path, text.messages, ignored, fields.errors())) return;
  }
}

void read_template_fields(RequestFields& fields, TextRequest& text) {
  fields.read("continue_final_message", text.continue_final_message);
  text.add_generation_prompt = !text.continue_final_message;
  fields.read("add_generation_prompt", text.add_generation_prompt);
  if (text.continue_final_message && text.add_generation_prompt)
    fields.fail("continue_final_message", "and \"add_generation_prompt\" exclude each other");
  fields.read("chat_template", text.template_name);
  if (text.template_name.find_first_of("{\n") != std::string::npos)
    fields.fail("chat_template", "is a template: requests may not bring templates, only name one of the model's");
  std::string effort;
  fields.read("reasoning_effort", effort);
  if (!effort.empty()) text.template_variables["reasoning_effort"] = effort;
  if (const json::array* documents = fields.array("documents")) {
    for (const json::value& document : *documents)
      if (!document.is_object()) return fields.wrong_kind("documents", "a list of objects", document);
    if (!documents->empty()) text.template_variables["documents"] = *documents;
  }
  const json::object* variables = fields.object("chat_template_kwargs");
  if (variables == nullptr) return;
  const auto max_count = static_cast<size_t>(fields.row("chat_template_kwargs").max_count);
  if (variables->size() > max_count)
    return fields.fail("chat_template_kwargs", "has {} entries, at most {} are allowed", variables->size(), max_count);
  static constexpr std::string_view kReserved[] = {
      "messages",      "tools",    "documents",     "add_generation_prompt", "continue_final_message",
      "chat_template", "tokenize", "return_tensors"};
  for (const auto& [key, value] : *variables) {
    const std::string_view name(key.data(), key.size());
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved))
      return fields.fail("chat_template_kwargs", "may not set \"{}\"", name);
    text.template_variables[key] = value;
  }
}

}  // namespace lk::openai
