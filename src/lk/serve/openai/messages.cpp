// SPDX-License-Identifier: Apache-2.0
#include <boost/json.hpp>

#include "lk/io/json_fields.h"
#include "lk/serve/openai/json_reader.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

// The text parts of a content list, a line each, as chat templates that want a string get it.
bool join_parts(const json::array& parts, const std::string& path, json::string& out, FirstError& error) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!parts[i].is_object()) {
      error.set(where, fmt::format("\"{}\" must be an object, is {}", where, json_kind(parts[i])));
      return false;
    }
    ApiFields part(parts[i].get_object(), where, error);
    const json::value* type = part.find("type");
    const bool is_text =
        type != nullptr && type->is_string() && (type->get_string() == "text" || type->get_string() == "refusal");
    if (!is_text) {
      const std::string found =
          type != nullptr && type->is_string() ? std::string(view(type->get_string()).substr(0, 32)) : "missing";
      part.fail("type", "is {}: the model takes text only", found);
      return false;
    }
    const json::value* text = part.find(view(type->get_string()));
    if (text == nullptr || !text->is_string()) return part.fail(view(type->get_string()), "must be a string"), false;
    if (i > 0) out += '\n';
    out += text->get_string();
  }
  return true;
}

// {"id", "type", "function": {"name", "arguments"}}: templates print arguments as JSON, so they are given as an object.
bool read_call(const json::value& value, const std::string& path, json::array& out, FirstError& error) {
  if (!value.is_object()) {
    error.set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(value)));
    return false;
  }
  ApiFields fields(value.get_object(), path, error);
  std::string id, type = "function";
  fields.read_string("id", id, 0, kMaxNameBytes);
  fields.read_choice("type", type, {"function"});
  const json::object* function = fields.object("function");
  if (function == nullptr) fields.fail("function", "is missing");
  if (fields.failed()) return false;
  ApiFields inner(*function, path + ".function", error);
  std::string name;
  inner.read_string("name", name, 1, kMaxNameBytes);
  if (name.empty()) inner.fail("name", "is missing");
  json::value arguments = json::object();
  if (const json::value* given = inner.find("arguments")) {
    if (given->is_object()) {
      arguments = *given;
    } else if (!given->is_string()) {
      inner.wrong_kind("arguments", "a string with a JSON object", *given);
    } else if (!given->get_string().empty()) {
      Result<json::value> parsed = read_json(view(given->get_string()));
      if (!parsed.ok())
        inner.fail("arguments", "is not valid JSON: {}", parsed.status().message());
      else if (!parsed->is_object())
        inner.wrong_kind("arguments", "a string with a JSON object", *parsed);
      else
        arguments = std::move(*parsed);
    }
  }
  if (fields.failed()) return false;
  json::object call{{"type", "function"}, {"function", {{"name", name}, {"arguments", std::move(arguments)}}}};
  if (!id.empty()) call["id"] = id;
  out.emplace_back(std::move(call));
  return true;
}

bool read_message(const json::object& message, const std::string& path, json::array& out,
                  std::vector<std::string>& ignored, FirstError& error) {
  ApiFields fields(message, path, error);
  std::string role, name, tool_call_id, reasoning;
  fields.read_string("role", role, 1, 64);
  if (role.empty()) fields.fail("role", "is missing");
  if (role == "function") fields.fail("role", "is \"function\", which is deprecated; use \"tool\"");
  if (role == "developer") role = "system";  // what chat templates call it
  fields.read_string("name", name, 0, kMaxNameBytes);
  fields.read_string("tool_call_id", tool_call_id, 0, kMaxNameBytes);
  fields.read_string("reasoning_content", reasoning, 0, static_cast<size_t>(-1));
  fields.refuse("function_call", "it is deprecated; use \"tool_calls\"");
  fields.refuse("audio", "the model takes text only");
  json::array calls;
  if (const json::array* given = fields.array("tool_calls", kMaxTools)) {
    if (!given->empty() && role != "assistant")
      fields.fail("tool_calls", "is only allowed in messages of the assistant");
    for (size_t i = 0; i < given->size(); ++i)
      if (!read_call((*given)[i], fmt::format("{}.tool_calls[{}]", path, i), calls, error)) return false;
  }
  json::string content;
  std::string refusal;
  fields.read_string("refusal", refusal, 0, static_cast<size_t>(-1));
  const json::value* given = fields.find("content");
  if (given == nullptr) {
    if (role != "assistant" || (calls.empty() && refusal.empty())) fields.fail("content", "is missing");
    content = refusal;
  } else if (given->is_string()) {
    content = given->get_string();
  } else if (given->is_array()) {
    join_parts(given->get_array(), path + ".content", content, error);
  } else {
    fields.wrong_kind("content", "a string or a list of text parts", *given);
  }
  if (fields.failed()) return false;
  fields.unknown(ignored);
  json::object rendered{{"role", role}, {"content", std::move(content)}};
  if (!name.empty()) rendered["name"] = name;
  if (!tool_call_id.empty()) rendered["tool_call_id"] = tool_call_id;
  if (!reasoning.empty()) rendered["reasoning_content"] = reasoning;
  if (!calls.empty()) rendered["tool_calls"] = std::move(calls);
  out.emplace_back(std::move(rendered));
  return true;
}

}  // namespace

void read_messages(ApiFields& fields, TextRequest& text, std::vector<std::string>& ignored) {
  const json::array* messages = fields.array("messages", 65'536);
  if (messages == nullptr || messages->empty())
    return fields.fail("messages", "must be a list with at least one message");
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    const json::value& message = (*messages)[i];
    if (!message.is_object())
      return fields.error().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(message)));
    if (!read_message(message.get_object(), path, text.messages, ignored, fields.error())) return;
  }
}

void read_template_fields(ApiFields& fields, TextRequest& text) {
  fields.read_bool("continue_final_message", text.continue_final_message);
  text.add_generation_prompt = !text.continue_final_message;
  fields.read_bool("add_generation_prompt", text.add_generation_prompt);
  if (text.continue_final_message && text.add_generation_prompt)
    fields.fail("continue_final_message", "and \"add_generation_prompt\" exclude each other");
  std::string effort;
  fields.read_string("reasoning_effort", effort, 1, 32);
  if (!effort.empty()) text.template_variables["reasoning_effort"] = effort;
  if (const json::array* documents = fields.array("documents", 4096)) {
    for (const json::value& document : *documents)
      if (!document.is_object()) return fields.wrong_kind("documents", "a list of objects", document);
    if (!documents->empty()) text.template_variables["documents"] = *documents;
  }
  const json::object* variables = fields.object("chat_template_kwargs");
  if (variables == nullptr) return;
  if (variables->size() > 64)
    return fields.fail("chat_template_kwargs", "has {} entries, at most 64 are allowed", variables->size());
  static constexpr std::string_view kReserved[] = {
      "messages",      "tools",    "documents",     "add_generation_prompt", "continue_final_message",
      "chat_template", "tokenize", "return_tensors"};
  for (const auto& [key, value] : *variables) {
    const std::string_view name(key.data(), key.size());
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved))
      return fields.fail("chat_template_kwargs", "may not set \"{}\"", name);
    if (value.is_object() || value.is_array())
      return fields.fail("chat_template_kwargs",
                         "may only hold strings, numbers, true, false and null; one entry is {}", json_kind(value));
    text.template_variables[key] = value;
  }
}

}  // namespace lk::openai
