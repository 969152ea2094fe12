// SPDX-License-Identifier: Apache-2.0
// A call as models of Llama 3.2 and 4 write it, [name(key=value, ...)], of one of several functions. Values are JSON,
// which their readers take as well as Python's literals; keys come in the order of the schema.
#include <algorithm>
#include <array>

#include <boost/json.hpp>

#include "lk/base/ascii.h"
#include "lk/base/json_reader.h"
#include "lk/base/json_text.h"
#include "lk/grammar/frontends.h"

namespace lk::grammar {
namespace {

namespace json = boost::json;

// A value's schema is a document of its own from here on: it may refer to definitions, which go with it, and nothing
// else.
Status check_references(const json::value& schema, const std::string& where) {
  if (const json::array* list = schema.if_array()) {
    for (const json::value& item : *list) LK_RETURN_IF_ERROR(check_references(item, where));
  } else if (const json::object* object = schema.if_object()) {
    for (const auto& [key, value] : *object) {
      if (key == "$ref" && value.is_string() && !value.get_string().starts_with("#/$defs/") &&
          !value.get_string().starts_with("#/definitions/"))
        return invalid_argument("{}: the reference \"{}\" is not to one of the definitions", where,
                                std::string_view(value.get_string()));
      LK_RETURN_IF_ERROR(check_references(value, where));
    }
  }
  return Status();
}

class Calls {
 public:
  Calls(Ir& ir, const GrammarLimits& limits, Budget& budget) : ir_(ir), limits_(limits), budget_(budget) {}

  Result<Expr> call(const json::object& function) {
    const std::string name(function.at("name").as_string());
    const json::object parameters =
        function.contains("parameters") ? function.at("parameters").as_object() : json::object();
    static constexpr std::array kKnown{"type",    "properties",  "required", "additionalProperties",
                                       "$defs",   "definitions", "title",    "description",
                                       "$schema", "strict"};
    for (const auto& [key, value] : parameters)
      if (std::ranges::find(kKnown, std::string_view(key)) == kKnown.end())
        return invalid_argument("{}: \"{}\" is not supported beside the keys of a call", name, std::string_view(key));
    std::vector<Key> keys;
    LK_RETURN_IF_ERROR(read_keys(parameters, name, keys));
    // The keys as a graph, in which each is written once: none(i), the first i keys are decided and none was written;
    // some(i), one was; entry(i), key i begins.
    const auto count = static_cast<uint32_t>(keys.size());
    const auto none = [&](uint32_t i) { return i; };
    const auto some = [&](uint32_t i) { return count + 1 + i; };
    const auto entry = [&](uint32_t i) { return 2 * (count + 1) + i; };
    const uint32_t end = entry(count);
    const Expr comma = ir_.seq({ir_.literal(","), ir_.optional(ir_.literal(" "))});
    std::vector<ExprNode::Edge> edges;
    for (uint32_t i = 0; i < count; ++i) {
      edges.push_back({none(i), entry(i), ir_.empty()});
      edges.push_back({some(i), entry(i), comma});
      edges.push_back({entry(i), some(i + 1), ir_.seq({ir_.literal(keys[i].name + "="), keys[i].value})});
      if (keys[i].required) continue;
      edges.push_back({none(i), none(i + 1), ir_.empty()});
      edges.push_back({some(i), some(i + 1), ir_.empty()});
    }
    edges.push_back({none(count), end, ir_.empty()});
    edges.push_back({some(count), end, ir_.empty()});
    const Expr arguments = ir_.graph(static_cast<int>(end) + 1, std::move(edges));
    return ir_.seq({ir_.literal("[" + name + "("), arguments, ir_.literal(")]")});
  }

 private:
  struct Key {
    std::string name;
    Expr value;
    bool required;
  };

  Status read_keys(const json::object& parameters, const std::string& function, std::vector<Key>& keys) {
    std::vector<std::string_view> required;
    if (const json::value* list = parameters.if_contains("required"); list != nullptr && list->is_array())
      for (const json::value& key : list->get_array())
        if (key.is_string()) required.emplace_back(key.get_string());
    const json::value* properties = parameters.if_contains("properties");
    const json::object none;
    const json::object* given = properties != nullptr ? properties->if_object() : nullptr;
    for (const auto& [key, schema] : given != nullptr ? *given : none) {
      if (!budget_.spend(0)) return budget_.status();
      const std::string where = fmt::format("{}.{}", function, std::string_view(key));
      const bool needed = std::ranges::find(required, std::string_view(key)) != required.end();
      if (!is_identifier(key)) {
        if (!needed) continue;  // nobody can write it
        return invalid_argument("{}: the key of such a call has letters, digits and _", where);
      }
      json::value document = schema;
      for (const char* definitions : {"$defs", "definitions"})
        if (const json::value* all = parameters.if_contains(definitions); all != nullptr && document.is_object())
          document.get_object().emplace(definitions, *all);
      LK_RETURN_IF_ERROR(check_references(document, where));
      const Result<RuleId> value = translate_schema(ir_, json_text(document), limits_, budget_);
      if (!value.ok()) return value.status().with_context(where);
      keys.push_back({std::string(key), ir_.call(*value), needed});
    }
    for (const std::string_view key : required)
      if (given == nullptr || !given->contains(key))
        return invalid_argument("{}: \"{}\" is required and none of the properties", function, key);
    return Status();
  }

  Ir& ir_;
  const GrammarLimits& limits_;
  Budget& budget_;
};

}  // namespace

Result<RuleId> translate_python_calls(Ir& ir, std::string_view functions, const GrammarLimits& limits, Budget& budget) {
  LK_ASSIGN_OR_RETURN(const json::value list, read_json(functions));
  if (!list.is_array()) return invalid_argument("a list of functions is expected");
  Calls calls(ir, limits, budget);
  std::vector<Expr> all;
  for (const json::value& function : list.get_array()) {
    if (!function.is_object()) return invalid_argument("a function must be an object");
    LK_ASSIGN_OR_RETURN(const Expr call, calls.call(function.get_object()));
    all.push_back(call);
  }
  const RuleId root = ir.add_rule("call");
  ir.define(root, ir.alt(std::move(all)));
  return root;
}

}  // namespace lk::grammar
