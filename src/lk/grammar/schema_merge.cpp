// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <set>

#include "lk/grammar/schema.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

namespace json = boost::json;

constexpr int kMaxMergeDepth = 64;

double number_of(const json::value& value) {
  return value.is_int64()    ? static_cast<double>(value.get_int64())
         : value.is_uint64() ? static_cast<double>(value.get_uint64())
         : value.is_double() ? value.get_double()
                             : 0;
}

std::optional<unsigned> type_named(std::string_view name) {
  static constexpr std::pair<std::string_view, unsigned> kTypes[] = {
      {"null", kNull},     {"boolean", kBoolean}, {"integer", kInteger}, {"number", kNumber},
      {"string", kString}, {"array", kArray},     {"object", kObject}};
  for (const auto& [type, bits] : kTypes) {
    if (type == name) return bits;
  }
  return std::nullopt;
}

json::array type_list(unsigned types) {
  json::array out;
  if (types & kNull) out.emplace_back("null");
  if (types & kBoolean) out.emplace_back("boolean");
  if (types & kFraction) out.emplace_back("number");
  if ((types & kNumber) == kInteger) out.emplace_back("integer");
  if (types & kString) out.emplace_back("string");
  if (types & kArray) out.emplace_back("array");
  if (types & kObject) out.emplace_back("object");
  return out;
}

// Types that a keyword speaks about; 0 if about all.
unsigned types_of_keyword(std::string_view keyword) {
  static const std::map<std::string_view, unsigned> types = {
      {"properties", kObject},      {"required", kObject}, {"additionalProperties", kObject},
      {"propertyNames", kObject},   {"items", kArray},     {"prefixItems", kArray},
      {"minItems", kArray},         {"maxItems", kArray},  {"minLength", kString},
      {"maxLength", kString},       {"pattern", kString},  {"format", kString},
      {"minimum", kNumber},         {"maximum", kNumber},  {"exclusiveMinimum", kNumber},
      {"exclusiveMaximum", kNumber}};
  const auto at = types.find(keyword);
  return at == types.end() ? 0 : at->second;
}

json::value both(const json::value& a, const json::value& b) { return json::object{{"allOf", json::array{a, b}}}; }

std::set<std::string> required_of(const json::object& schema) {
  std::set<std::string> out;
  if (const json::value* list = schema.if_contains("required"); list != nullptr && list->is_array()) {
    for (const json::value& name : list->get_array()) {
      if (name.is_string()) out.emplace(name.get_string());
    }
  }
  return out;
}

const json::object* properties_of(const json::object& schema) {
  const json::value* list = schema.if_contains("properties");
  return list == nullptr ? nullptr : list->if_object();
}

}  // namespace

unsigned type_of(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return kNull;
    case json::kind::bool_:
      return kBoolean;
    case json::kind::string:
      return kString;
    case json::kind::array:
      return kArray;
    case json::kind::object:
      return kObject;
    case json::kind::double_:
      return value.get_double() == std::floor(value.get_double()) ? kInteger : kFraction;
    default:
      return kInteger;
  }
}

bool is_annotation(std::string_view keyword, const json::value& value) {
  // All that says what is valid, in any draft from 4 on.
  static const std::set<std::string_view> names = {"type",
                                                   "enum",
                                                   "const",
                                                   "properties",
                                                   "required",
                                                   "additionalProperties",
                                                   "propertyNames",
                                                   "patternProperties",
                                                   "unevaluatedProperties",
                                                   "minProperties",
                                                   "maxProperties",
                                                   "dependencies",
                                                   "dependentRequired",
                                                   "dependentSchemas",
                                                   "items",
                                                   "prefixItems",
                                                   "additionalItems",
                                                   "unevaluatedItems",
                                                   "minItems",
                                                   "maxItems",
                                                   "uniqueItems",
                                                   "contains",
                                                   "minContains",
                                                   "maxContains",
                                                   "minLength",
                                                   "maxLength",
                                                   "pattern",
                                                   "format",
                                                   "minimum",
                                                   "maximum",
                                                   "exclusiveMinimum",
                                                   "exclusiveMaximum",
                                                   "multipleOf",
                                                   "anyOf",
                                                   "oneOf",
                                                   "allOf",
                                                   "not",
                                                   "if",
                                                   "then",
                                                   "else",
                                                   "$ref",
                                                   "$dynamicRef",
                                                   "$recursiveRef",
                                                   "extends",
                                                   "disallow"};
  if (keyword == "format" && value.is_string()) return find_format(std::string_view(value.get_string())) == nullptr;
  return !names.contains(keyword);
}

json::object with_new_tuples(const json::object& schema) {
  const json::value* items = schema.if_contains("items");
  json::object out = schema;
  out.erase("additionalItems");  // without a list it says nothing
  if (items == nullptr || !items->is_array() || schema.contains("prefixItems")) return out;
  out["prefixItems"] = *items;
  out.erase("items");
  if (const json::value* rest = schema.if_contains("additionalItems")) out["items"] = *rest;
  return out;
}

Result<unsigned> types_of(const json::object& schema, const std::string& where) {
  const json::value* type = schema.if_contains("type");
  if (type ==
      nullptr) {  // only the types that the keywords speak about: fewer than the standard allows, but what is meant
    unsigned types = 0;
    for (const auto& [key, value] : schema)
      if (!is_annotation(key, value)) types |= types_of_keyword(key);
    return types == 0 ? unsigned{kAnyType} : types;
  }
  unsigned types = 0;
  const json::array single{*type};
  for (const json::value& name : type->is_array() ? type->get_array() : single) {
    const auto bits = name.is_string() ? type_named(std::string_view(name.get_string())) : std::nullopt;
    if (!bits.has_value())
      return invalid_argument("{}: \"type\" must be the name of a type or an array of them", where);
    types |= *bits;
  }
  return types;
}

std::optional<std::vector<json::value>> constants_of(const json::object& schema) {
  std::optional<std::vector<json::value>> out;
  if (const json::value* list = schema.if_contains("enum"); list != nullptr && list->is_array())
    out.emplace(list->get_array().begin(), list->get_array().end());
  if (const json::value* constant = schema.if_contains("const")) {
    if (!out.has_value()) return std::vector<json::value>{*constant};
    std::erase_if(*out, [&](const json::value& value) { return value != *constant; });
  }
  return out;
}

Result<const json::value*> SchemaDocument::resolve(std::string_view reference, const std::string& where) const {
  const auto bad = [&](const char* why) { return invalid_argument("{}: \"$ref\": \"{}\" {}", where, reference, why); };
  if (reference.empty() || reference[0] != '#' || (reference.size() > 1 && reference[1] != '/'))
    return bad("must begin with \"#/\": only this document is read");
  const json::value* at = &root_;
  for (size_t pos = 1; pos < reference.size();) {
    const size_t end = std::min(reference.find('/', pos + 1), reference.size());
    std::string name;
    for (size_t k = pos + 1; k < end; ++k) {
      const char c = reference[k];
      const auto hex = [&](size_t i) {
        const char d = i < end ? reference[i] : 'x';
        return d >= '0' && d <= '9'   ? d - '0'
               : d >= 'a' && d <= 'f' ? d - 'a' + 10
               : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                      : -1;
      };
      if (c == '~' && k + 1 < end && (reference[k + 1] == '0' || reference[k + 1] == '1')) {
        name += reference[++k] == '0' ? '~' : '/';
      } else if (c == '%' && hex(k + 1) >= 0 && hex(k + 2) >= 0) {
        name += static_cast<char>(hex(k + 1) * 16 + hex(k + 2));
        k += 2;
      } else {
        name += c;
      }
    }
    pos = end;
    const json::value* next = nullptr;
    if (const json::object* object = at->if_object()) next = object->if_contains(name);
    if (const json::array* list = at->if_array(); list != nullptr && !name.empty() && name.size() < 7 &&
                                                  name.find_first_not_of("0123456789") == std::string::npos)
      next = list->if_contains(static_cast<size_t>(std::stoul(name)));
    if (next == nullptr) return bad("does not exist");
    at = next;
  }
  return at;
}

Result<json::value> SchemaDocument::flatten(const json::value& schema, const std::string& where, int depth) const {
  if (!budget_.spend(0)) return budget_.status();
  if (depth > kMaxMergeDepth)
    return invalid_argument("{}: \"allOf\" or \"$ref\" is nested more than {} deep, or contains itself", where,
                            kMaxMergeDepth);
  const json::object* object = schema.if_object();
  if (object == nullptr) {
    if (schema.is_bool()) return schema;
    return invalid_argument("{}: a schema must be an object or a boolean", where);
  }
  if (!object->contains("$ref") && !object->contains("allOf")) return schema;
  json::object rest = *object;
  rest.erase("$ref");
  rest.erase("allOf");
  json::value out = std::move(rest);
  if (const json::value* reference = object->if_contains("$ref")) {
    if (!reference->is_string()) return invalid_argument("{}: \"$ref\" must be a string", where);
    LK_ASSIGN_OR_RETURN(const json::value* target, resolve(std::string_view(reference->get_string()), where));
    LK_ASSIGN_OR_RETURN(out, merge(*target, out, where, depth + 1));
  }
  if (const json::value* list = object->if_contains("allOf")) {
    if (!list->is_array() || list->get_array().empty())
      return invalid_argument("{}: \"allOf\" must be a non-empty array", where);
    for (const json::value& part : list->get_array()) {
      LK_ASSIGN_OR_RETURN(out, merge(out, part, where, depth + 1));
    }
  }
  return out;
}

Result<json::value> SchemaDocument::merge(const json::value& a, const json::value& b, const std::string& where,
                                          int depth) const {
  LK_ASSIGN_OR_RETURN(const json::value x, flatten(a, where, depth + 1));
  LK_ASSIGN_OR_RETURN(const json::value y, flatten(b, where, depth + 1));
  if (const bool* any = x.if_bool()) return *any ? y : x;
  if (const bool* any = y.if_bool()) return *any ? x : y;
  LK_ASSIGN_OR_RETURN(json::object out,
                      merge_objects(with_new_tuples(x.get_object()), with_new_tuples(y.get_object()), where));
  return json::value(std::move(out));
}

Result<json::object> SchemaDocument::merge_objects(const json::object& a, const json::object& b,
                                                   const std::string& where) const {
  json::object out;
  for (const auto& [key, value] : a) {
    if (!is_annotation(key, value)) out[key] = value;
  }
  LK_RETURN_IF_ERROR(merge_properties(a, b, out, where));
  for (const auto& [key, value] : b) {
    const std::string_view keyword(key);
    if (is_annotation(keyword, value) || keyword == "properties" || keyword == "required" ||
        keyword == "additionalProperties")
      continue;
    if (!out.contains(key) || out.at(key) == value) {
      out[key] = value;
    } else if (keyword == "type") {
      LK_ASSIGN_OR_RETURN(const unsigned x, types_of(a, where));
      LK_ASSIGN_OR_RETURN(const unsigned y, types_of(b, where));
      out[key] = type_list(x & y);
    } else if (keyword == "minimum" || keyword == "exclusiveMinimum" || keyword == "minLength" ||
               keyword == "minItems") {
      if (number_of(value) > number_of(out.at(key))) out[key] = value;
    } else if (keyword == "maximum" || keyword == "exclusiveMaximum" || keyword == "maxLength" ||
               keyword == "maxItems") {
      if (number_of(value) < number_of(out.at(key))) out[key] = value;
    } else if (keyword == "enum") {
      json::array common;
      const auto x = constants_of(json::object{{"enum", out.at(key)}}), y = constants_of(json::object{{"enum", value}});
      if (!x.has_value() || !y.has_value()) return invalid_argument("{}: \"enum\" must be an array", where);
      for (const json::value& constant : *x) {
        if (std::find(y->begin(), y->end(), constant) != y->end()) common.push_back(constant);
      }
      out[key] = std::move(common);
    } else if (keyword == "const") {
      out["enum"] = json::array{};  // two different constants: no value
    } else if (keyword == "propertyNames" ||
               (keyword == "items" && !a.contains("prefixItems") && !b.contains("prefixItems"))) {
      out[key] = both(out.at(key), value);
    } else {
      return invalid_argument("{}: two different \"{}\" that must both hold are not supported", where, keyword);
    }
  }
  const bool tuples =
      (a.contains("prefixItems") && b.contains("items")) || (b.contains("prefixItems") && a.contains("items"));
  if (tuples && (a.contains("prefixItems") != b.contains("prefixItems") || a.contains("items") != b.contains("items")))
    return invalid_argument(
        "{}: \"prefixItems\" and \"items\" of different schemas that must both hold are not supported", where);
  return out;
}

// A property that one side does not list must hold for its "additionalProperties".
Status SchemaDocument::merge_properties(const json::object& a, const json::object& b, json::object& out,
                                        const std::string& where) const {
  for (const json::object* side : {&a, &b}) {
    const json::value* list = side->if_contains("properties");
    if (list != nullptr && !list->is_object()) return invalid_argument("{}: \"properties\" must be an object", where);
  }
  const json::object* x = properties_of(a);
  const json::object* y = properties_of(b);
  const json::value* rest_a = a.if_contains("additionalProperties");
  const json::value* rest_b = b.if_contains("additionalProperties");
  json::object properties;
  if (x != nullptr) {
    for (const auto& [key, value] : *x) {
      const json::value* other = y == nullptr ? nullptr : y->if_contains(key);
      if (other == nullptr) other = rest_b;
      properties[key] = other == nullptr || *other == value ? value : both(value, *other);
    }
  }
  if (y != nullptr) {
    for (const auto& [key, value] : *y) {
      if (!properties.contains(key)) properties[key] = rest_a == nullptr ? value : both(value, *rest_a);
    }
  }
  if (x != nullptr || y != nullptr) out["properties"] = std::move(properties);
  if (rest_a != nullptr && rest_b != nullptr) {
    out["additionalProperties"] = *rest_a == *rest_b ? *rest_a : both(*rest_a, *rest_b);
  } else if (rest_b != nullptr) {
    out["additionalProperties"] = *rest_b;
  }
  json::array required;
  for (const json::object* side : {&a, &b}) {
    const json::value* list = side->if_contains("required");
    if (list == nullptr) continue;
    if (!list->is_array()) return invalid_argument("{}: \"required\" must be an array", where);
    for (const json::value& name : list->get_array()) {
      if (std::find(required.begin(), required.end(), name) == required.end()) required.push_back(name);
    }
  }
  if (!required.empty()) out["required"] = std::move(required);
  return {};
}

Result<bool> SchemaDocument::disjoint(const json::value& a, const json::value& b, const std::string& where) const {
  LK_ASSIGN_OR_RETURN(const json::value x, flatten(a, where));
  LK_ASSIGN_OR_RETURN(const json::value y, flatten(b, where));
  if (!x.is_object() || !y.is_object()) return x == json::value(false) || y == json::value(false);
  const json::object &p = x.get_object(), &q = y.get_object();
  const auto constants_p = constants_of(p), constants_q = constants_of(q);
  if (constants_p.has_value() && constants_q.has_value()) {
    return std::none_of(constants_p->begin(), constants_p->end(), [&](const json::value& c) {
      return std::find(constants_q->begin(), constants_q->end(), c) != constants_q->end();
    });
  }
  // Without "type" a schema is valid for all types that its keywords do not speak about.
  const auto types = [&](const json::object& schema, const auto& constants) -> Result<unsigned> {
    if (schema.contains("type")) return types_of(schema, where);
    if (!constants.has_value()) return unsigned{kAnyType};
    unsigned bits = 0;
    for (const json::value& constant : *constants) bits |= type_of(constant);
    return bits;
  };
  LK_ASSIGN_OR_RETURN(const unsigned types_p, types(p, constants_p));
  LK_ASSIGN_OR_RETURN(const unsigned types_q, types(q, constants_q));
  if ((types_p & types_q) == 0) return true;
  if ((types_p & types_q) != kObject) return false;
  const std::set<std::string> required_p = required_of(p), required_q = required_of(q);
  const auto closed_against = [](const json::object& schema, const std::set<std::string>& names) {
    const json::value* rest = schema.if_contains("additionalProperties");
    if (rest == nullptr || *rest != json::value(false)) return false;
    const json::object* listed = properties_of(schema);
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return listed == nullptr || !listed->contains(name); });
  };
  if (closed_against(p, required_q) || closed_against(q, required_p)) return true;
  for (const std::string& name : required_p) {
    const json::value* u = properties_of(p) == nullptr ? nullptr : properties_of(p)->if_contains(name);
    const json::value* v = properties_of(q) == nullptr ? nullptr : properties_of(q)->if_contains(name);
    if (!required_q.contains(name) || u == nullptr || v == nullptr || !u->is_object() || !v->is_object()) continue;
    const auto constants_u = constants_of(u->get_object()), constants_v = constants_of(v->get_object());
    if (!constants_u.has_value() || !constants_v.has_value()) continue;
    if (std::none_of(constants_u->begin(), constants_u->end(), [&](const json::value& c) {
          return std::find(constants_v->begin(), constants_v->end(), c) != constants_v->end();
        }))
      return true;
  }
  return false;
}

}  // namespace lk::grammar
