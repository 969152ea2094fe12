// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/serve/openai/custom_tools.h"
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

// [{"name", "parameters"}, ...]
json::array called_functions(const json::array& tools) {
  json::array functions;
  for (const json::value& tool : tools)
    functions.push_back({{"name", function_name(tool)}, {"parameters", parameters(tool)}});
  return functions;
}

// Its grammar is that of the answer, not of all that the model writes.
bool binds_answer(const GenerateRequest& request) { return request.grammar_field.starts_with("response_format"); }

// What an entry of tool_choice names: {"type": "function", "function": {"name"}}, or the same with custom. Empty after
// an error.
std::string read_chosen(RequestFields& choice, const TextRequest& text, const std::vector<CustomTool>& customs) {
  std::string type, name;
  choice.read("type", type);
  if (type.empty()) choice.fail("type", "must be \"function\" or \"custom\"");
  if (type == "allowed_tools") choice.fail("type", "is \"allowed_tools\" within allowed_tools");
  if (choice.failed()) return {};
  const bool custom = type == "custom";
  const json::object* object = custom ? choice.object("custom") : choice.object("function");
  if (object == nullptr) return choice.fail(type, "is missing"), "";
  RequestFields named(*object, kChosenFunctionForm, choice.path(type), choice.errors());
  named.read("name", name);
  if (name.empty()) return named.fail("name", "is missing"), "";
  const bool is_tool =
      std::ranges::any_of(text.tools, [&](const json::value& tool) { return function_name(tool) == name; });
  const bool is_custom = std::ranges::find(customs, name, &CustomTool::name) != customs.end();
  if (!is_tool) return named.fail("name", "is \"{}\", which is none of the tools", name), "";
  if (is_custom != custom) return named.fail("name", "is \"{}\", which is a tool of the other type", name), "";
  return name;
}

// The whole answer is a call of this tool: its arguments, or the input of a custom one that has a grammar.
void force_tool(RequestFields& fields, const std::string& name, GenerateRequest& request, const TextRequest& text) {
  request.tool_forced = true;
  request.forced_tool = name;
  if (binds_answer(request)) request.grammar.reset();  // there will be none
  const auto custom = std::ranges::find(request.custom_tools, name, &CustomTool::name);
  if (custom != request.custom_tools.end() && custom->grammar) {
    request.forced_input = true;
    return set_grammar(fields, "tool_choice", *custom->grammar, request);
  }
  const auto tool =
      std::ranges::find_if(text.tools, [&](const json::value& each) { return function_name(each) == name; });
  set_grammar(fields, "tool_choice", {GrammarSpec::Kind::kJsonSchema, json_text(parameters(*tool)), {}}, request);
}

// The whole answer is a call of any of the tools.
void force_any(RequestFields& fields, GenerateRequest& request, const TextRequest& text) {
  if (text.tools.size() == 1 && !request.custom_tools.empty() && request.custom_tools[0].grammar)
    return force_tool(fields, request.custom_tools[0].name, request, text);
  for (const CustomTool& custom : request.custom_tools)
    if (custom.grammar && custom.grammar->kind == GrammarSpec::Kind::kLark)
      return fields.errors().set(
          custom.format_field,
          fmt::format(
              "\"{}\" is a Lark grammar, which binds a call of its own tool only: force that one (tool_choice, or "
              "allowed_tools with nothing else), or leave the choice to the model",
              custom.format_field));
  request.tool_forced = true;
  if (binds_answer(request)) request.grammar.reset();
  set_grammar(fields, "tool_choice", {GrammarSpec::Kind::kJsonSchema, json_text(any_call_schema(text.tools)), {}},
              request);
}

// {"mode", "tools"}: the others are out of sight. Returns the mode.
std::string read_allowed(RequestFields& choice, GenerateRequest& request, TextRequest& text) {
  const json::object* object = choice.object("allowed_tools");
  if (object == nullptr) return choice.fail("allowed_tools", "is missing"), "";
  RequestFields allowed(*object, kAllowedToolsForm, choice.path("allowed_tools"), choice.errors());
  std::string mode;
  allowed.read("mode", mode);
  if (mode.empty()) allowed.fail("mode", "must be \"auto\" or \"required\"");
  const json::array* list = allowed.array("tools");
  if (list == nullptr || list->empty()) allowed.fail("tools", "must name at least one tool");
  if (allowed.failed()) return {};
  std::set<std::string, std::less<>> names;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", allowed.path("tools"), i);
    const json::object* entry = (*list)[i].if_object();
    if (entry == nullptr)
      return allowed.errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind((*list)[i]))),
             "";
    RequestFields chosen(*entry, kToolChoiceForm, path, allowed.errors());
    names.insert(read_chosen(chosen, text, request.custom_tools));
    if (allowed.failed()) return {};
  }
  json::array left;
  for (json::value& tool : text.tools)
    if (names.contains(function_name(tool))) left.push_back(std::move(tool));
  text.tools = std::move(left);
  std::erase_if(request.custom_tools, [&](const CustomTool& tool) { return !names.contains(tool.name); });
  return mode;
}

// {"type": "text"}, or {"type": "grammar", "grammar": {"syntax", "definition"}}
void read_format(RequestFields& custom, CustomTool& tool) {
  const json::object* object = custom.object("format");
  if (object == nullptr) return;
  tool.format_field = custom.path("format");
  RequestFields format(*object, kCustomFormatForm, tool.format_field, custom.errors());
  std::string type = "text", syntax, definition;
  format.read("type", type);
  if (type == "text") return;
  const json::object* grammar = format.object("grammar");
  if (grammar == nullptr) return format.fail("grammar", "is missing");
  RequestFields inner(*grammar, kCustomGrammarForm, format.path("grammar"), custom.errors());
  inner.read("syntax", syntax);
  if (syntax.empty()) inner.fail("syntax", "must be \"lark\" or \"regex\"");
  inner.read("definition", definition);
  if (definition.empty()) inner.fail("definition", "is missing");
  const auto kind = syntax == "regex" ? GrammarSpec::Kind::kRegex : GrammarSpec::Kind::kLark;
  tool.grammar = GrammarSpec{kind, std::move(definition), {}};
}

}  // namespace

void read_tool_list(RequestFields& fields, json::array& tools, std::vector<std::string>& ignored,
                    std::vector<CustomTool>* customs) {
  const json::array* given = fields.array("tools");
  if (given == nullptr) return;
  std::set<std::string> names;
  json::array shown;
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("tools[{}]", i);
    const json::value& tool = (*given)[i];
    if (!tool.is_object())
      return fields.errors().set(path, fmt::format("\"{}\" must be an object, is {}", path, json_kind(tool)));
    RequestFields outer(tool.get_object(), kToolForm, path, fields.errors());
    std::string type, name, description;
    outer.read("type", type);
    if (type.empty()) outer.fail("type", "must be \"function\" or \"custom\"");
    if (fields.failed()) return;
    const bool custom = type == "custom";
    const json::object* object = custom ? outer.object("custom") : outer.object("function");
    if (object == nullptr) return outer.fail(type, "is missing");
    RequestFields inner(*object, custom ? kCustomToolForm : kFunctionForm, path + "." + type, fields.errors());
    inner.read("name", name);
    if (!valid_function_name(name)) inner.fail("name", "must be 1 to 64 of a-z, A-Z, 0-9, _, - and .");
    if (!names.insert(name).second) inner.fail("name", "is \"{}\", as that of another tool", name);
    inner.read("description", description);
    if (custom) {
      CustomTool read{.name = name};
      read_format(inner, read);
      shown.push_back(custom_as_function(read, description));
      if (customs) customs->push_back(std::move(read));
    } else {
      inner.object("parameters");
      bool strict = false;
      inner.read("strict", strict);
      shown.push_back(tool);
    }
    add_ignored(outer, ignored);
    add_ignored(inner, ignored);
  }
  if (!fields.failed()) tools = std::move(shown);
}

const ChatTemplates::Entry* template_of(const ChatTemplates* templates, const TextRequest& text) {
  if (templates == nullptr) return nullptr;
  const auto entry = templates->choose(text.template_name, !text.tools.empty());
  return entry.ok() ? *entry : nullptr;
}

void read_tools(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text) {
  read_tool_list(fields, text.tools, request.ignored_fields, &request.custom_tools);
  fields.read("parallel_tool_calls", request.parallel_tool_calls);
  const json::value* choice = fields.find("tool_choice");
  if (fields.failed()) return;
  std::string word = text.tools.empty() ? "none" : "auto", named;
  if (choice != nullptr && !choice->is_object()) fields.read("tool_choice", word);
  if (text.tools.empty()) {
    if (word == "required" || (choice != nullptr && choice->is_object())) fields.fail("tool_choice", "needs \"tools\"");
    return;
  }
  if (choice != nullptr && choice->is_object()) {
    RequestFields object(choice->get_object(), kToolChoiceForm, "tool_choice", fields.errors());
    std::string type;
    object.read("type", type);
    if (type == "allowed_tools")
      word = read_allowed(object, request, text);
    else
      named = read_chosen(object, text, request.custom_tools);
    if (fields.failed()) return;
  }
  request.tool_format = defaults.tool_format;
  if (const ChatTemplates::Entry* entry = template_of(defaults.templates.get(), text))
    if (entry->tool_format != ToolFormat::kNone) request.tool_format = entry->tool_format;
  if (!named.empty()) {
    request.tool_named = true;
    force_tool(fields, named, request, text);
  } else if (word == "required") {
    force_any(fields, request, text);
  } else if (word == "none") {
    text.tools.clear();
  } else {
    // response_format binds the answer, which a call is not; other grammars leave no room for calls.
    request.tools_allowed = request.tool_format != ToolFormat::kNone && (!request.grammar || binds_answer(request));
    if (request.tools_allowed && request.grammar) {
      const ToolRow& row = tool_row(request.tool_format);
      text.bare_calls = row.bare;
      text.call_openings = row.tags;
      std::erase(text.call_openings, "<function=");
      // In most families a call may be the same object that a forced one is.
      request.call_grammar =
          row.body == ToolRow::Body::kPython
              ? GrammarSpec{GrammarSpec::Kind::kPythonCalls, json_text(called_functions(text.tools)), {}}
              : GrammarSpec{GrammarSpec::Kind::kJsonSchema, json_text(any_call_schema(text.tools)), {}};
    }
  }
  if (request.tool_forced) {
    const auto custom = std::ranges::find(request.custom_tools, request.forced_tool, &CustomTool::name);
    request.grammar_field = request.forced_input ? custom->format_field : "tools";
  }
  // The marks of a call are special tokens in most families. End tokens do not show: a token that stops has no text.
  if (request.tools_allowed) text.skip_special_tokens = false;
}

}  // namespace lk::openai
