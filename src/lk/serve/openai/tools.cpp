// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/serve/openai/parse.h"
#include "lk/serve/openai/tool_table.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

bool valid_function_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c < 0x80 && (std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.');
  });
}

std::string_view function_name(const json::value& tool) { return tool.at("function").at("name").as_string(); }

json::object parameters(const json::value& tool) {
  const json::value* schema = tool.at("function").as_object().if_contains("parameters");
  return schema != nullptr && schema->is_object() ? schema->get_object()
                                                  : json::object{{"type", "object"}, {"properties", json::object()}};
}

// Points the references of one function's schema to where its definitions go in the schema of all functions:
// "#/$defs/X" becomes "#/$defs/<prefix>.X", and "#" the schema itself, "#/$defs/<prefix>".
void relocate_references(json::value& schema, const std::string& prefix) {
  if (json::array* list = schema.if_array()) {
    for (json::value& item : *list) relocate_references(item, prefix);
  } else if (json::object* object = schema.if_object()) {
    for (auto& [key, value] : *object) {
      if (key != "$ref" || !value.is_string()) {
        relocate_references(value, prefix);
        continue;
      }
      const std::string target(value.get_string());
      for (const std::string_view root : {"#/$defs/", "#/definitions/"})
        if (target.starts_with(root)) value = fmt::format("#/$defs/{}.{}", prefix, target.substr(root.size()));
      if (target == "#") value = fmt::format("#/$defs/{}", prefix);
    }
  }
}

// {"name": ..., "arguments": ...} of any one of the functions.
json::object any_call_schema(const json::array& tools) {
  json::array alternatives;
  json::object definitions;
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string prefix = fmt::format("f{}", i);
    json::value schema = parameters(tools[i]);
    relocate_references(schema, prefix);
    json::object& object = schema.get_object();
    for (const char* key : {"$defs", "definitions"}) {
      const json::value* own = object.if_contains(key);
      if (own == nullptr || !own->is_object()) continue;
      for (const auto& [name, definition] : own->get_object())
        definitions[prefix + "." + std::string(name)] = definition;
      object.erase(key);
    }
    definitions[prefix] = std::move(schema);
    alternatives.push_back(
        {{"type", "object"},
         {"properties",
          {{"name", {{"const", function_name(tools[i])}}}, {"arguments", {{"$ref", "#/$defs/" + prefix}}}}},
         {"required", {"name", "arguments"}},
         {"additionalProperties", false}});
  }
  return {{"anyOf", std::move(alternatives)}, {"$defs", std::move(definitions)}};
}

// Its grammar is that of the answer, not of all that the model writes.
bool binds_answer(const GenerateRequest& request) { return request.grammar_field.starts_with("response_format"); }

void force_function(RequestFields& fields, const json::object& choice, GenerateRequest& request,
                    const TextRequest& text) {
  RequestFields inner(choice, kToolChoiceForm, "tool_choice", fields.errors());
  std::string type;
  inner.read("type", type);
  if (type.empty()) return inner.fail("type", "must be \"function\"");
  const json::object* function = inner.object("function");
  if (function == nullptr) return inner.fail("function", "is missing");
  RequestFields named(*function, kChosenFunctionForm, "tool_choice.function", fields.errors());
  named.read("name", request.forced_tool);
  if (request.forced_tool.empty()) return named.fail("name", "is missing");
  for (const json::value& tool : text.tools) {
    if (function_name(tool) != request.forced_tool) continue;
    request.tool_forced = true;
    if (binds_answer(request)) request.grammar.reset();  // there will be none
    return set_grammar(fields, "tool_choice", {GrammarSpec::Kind::kJsonSchema, json_text(parameters(tool)), {}},
                       request);
  }
  named.fail("name", "is \"{}\", which is none of the tools", request.forced_tool);
}

}  // namespace

void read_tool_list(RequestFields& fields, json::array& tools, std::vector<std::string>& ignored) {
  const json::array* given = fields.array("tools");
  if (given == nullptr) return;
  std::set<std::string> names;
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("tools[{}]", i);
    const json::value& tool = (*given)[i];
    if (!tool.is_object())
      return fields.errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(tool)));
    RequestFields outer(tool.get_object(), kToolForm, path, fields.errors());
    std::string type, name, description;
    outer.read("type", type);
    if (type.empty()) outer.fail("type", "must be \"function\"");
    const json::object* function = outer.object("function");
    if (function == nullptr) return outer.fail("function", "is missing");
    RequestFields inner(*function, kFunctionForm, path + ".function", fields.errors());
    inner.read("name", name);
    if (!valid_function_name(name)) inner.fail("name", "must be 1 to 64 of a-z, A-Z, 0-9, _, - and .");
    if (!names.insert(name).second) inner.fail("name", "is \"{}\", as that of another tool", name);
    inner.read("description", description);
    inner.object("parameters");
    bool strict = false;
    inner.read("strict", strict);
    add_ignored(outer, ignored);
    add_ignored(inner, ignored);
  }
  if (!fields.failed()) tools = *given;
}

const ChatTemplates::Entry* template_of(const ChatTemplates* templates, const TextRequest& text) {
  if (templates == nullptr) return nullptr;
  const auto entry = templates->choose(text.template_name, !text.tools.empty());
  return entry.ok() ? *entry : nullptr;
}

void read_tools(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text) {
  read_tool_list(fields, text.tools, request.ignored_fields);
  fields.read("parallel_tool_calls", request.parallel_tool_calls);
  const json::value* choice = fields.find("tool_choice");
  if (fields.failed()) return;
  request.tool_format = defaults.tool_format;
  if (const ChatTemplates::Entry* entry = template_of(defaults.templates.get(), text))
    if (entry->tool_format != ToolFormat::kNone) request.tool_format = entry->tool_format;
  std::string word = text.tools.empty() ? "none" : "auto";
  if (choice != nullptr && !choice->is_object()) fields.read("tool_choice", word);
  if (text.tools.empty()) {
    if (word == "required" || (choice != nullptr && choice->is_object())) fields.fail("tool_choice", "needs \"tools\"");
    return;
  }
  if (choice != nullptr && choice->is_object()) {
    force_function(fields, choice->get_object(), request, text);
  } else if (word == "required") {
    request.tool_forced = true;
    if (binds_answer(request)) request.grammar.reset();
    set_grammar(fields, "tool_choice", {GrammarSpec::Kind::kJsonSchema, json_text(any_call_schema(text.tools)), {}},
                request);
  } else if (word == "none") {
    text.tools.clear();
  } else {
    // response_format binds the answer, which a call is not; other grammars leave no room for calls.
    request.tools_allowed = request.tool_format != ToolFormat::kNone && (!request.grammar || binds_answer(request));
    if (request.tools_allowed && request.grammar) {
      std::vector<std::string> names;
      for (const json::value& tool : text.tools) names.emplace_back(function_name(tool));
      text.call_openings = tool_openings(request.tool_format, names);
      // In most families a call may be the same object that a forced one is.
      const ToolRow& row = tool_row(request.tool_format);
      if (row.object) {
        text.bare_calls = row.bare;
        text.call_openings = row.tags;
        std::erase(text.call_openings, "<function=");
        request.call_grammar = GrammarSpec{GrammarSpec::Kind::kJsonSchema, json_text(any_call_schema(text.tools)), {}};
      }
    }
  }
  if (request.tool_forced) request.grammar_field = "tools";
  // The marks of a call are special tokens in most families. End tokens do not show: a token that stops has no text.
  if (request.tools_allowed) text.skip_special_tokens = false;
}

}  // namespace lk::openai
