// SPDX-License-Identifier: Apache-2.0
// A plain validator for the keywords that the tests use: reads a value, knows nothing of automata.
#pragma once

#include <boost/json.hpp>
#include <cmath>
#include <regex>
#include <string>

namespace lk::grammar_testing {

class JsonValidator {
 public:
  explicit JsonValidator(const boost::json::value& root) : root_(root) {}
  bool valid(const boost::json::value& value) const { return valid(value, root_); }

 private:
  using Value = boost::json::value;
  static bool is_integer(const Value& value) {
    return value.is_int64() || value.is_uint64() ||
           (value.is_double() && value.get_double() == std::floor(value.get_double()));
  }
  static bool has_type(const Value& value, std::string_view type) {
    return type == "null"      ? value.is_null()
           : type == "boolean" ? value.is_bool()
           : type == "integer" ? is_integer(value)
           : type == "number"  ? value.is_number()
           : type == "string"  ? value.is_string()
           : type == "array"   ? value.is_array()
                               : type == "object" && value.is_object();
  }
  static size_t length(std::string_view text) {
    size_t count = 0;
    for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return count;
  }

  bool valid(const Value& value, const Value& schema) const {
    if (schema.is_bool()) return schema.get_bool();
    const auto& object = schema.as_object();
    for (const auto& [key, rule] : object) {
      if (!holds(value, key, rule, object)) return false;
    }
    return true;
  }

  bool holds(const Value& value, std::string_view key, const Value& rule, const boost::json::object& schema) const {
    const auto count = [&](auto predicate) {
      return std::count_if(rule.as_array().begin(), rule.as_array().end(), predicate);
    };
    const auto number = [&](const Value& v) { return v.to_number<double>(); };
    if (key == "type") {
      if (rule.is_string()) return has_type(value, rule.get_string());
      return count([&](const Value& type) { return has_type(value, type.get_string()); }) > 0;
    }
    if (key == "enum") return count([&](const Value& item) { return item == value; }) > 0;
    if (key == "const") return rule == value;
    if (key == "anyOf") return count([&](const Value& item) { return valid(value, item); }) > 0;
    if (key == "oneOf") return count([&](const Value& item) { return valid(value, item); }) == 1;
    if (key == "allOf") return count([&](const Value& item) { return !valid(value, item); }) == 0;
    if (key == "$ref")
      return valid(value, rule.get_string() == "#" ? root_ : root_.at_pointer(rule.get_string().subview(1)));
    if (value.is_number()) {
      if (key == "minimum") return number(value) >= number(rule);
      if (key == "maximum") return number(value) <= number(rule);
      if (key == "exclusiveMinimum") return number(value) > number(rule);
      if (key == "exclusiveMaximum") return number(value) < number(rule);
    }
    if (const auto* text = value.if_string()) {
      if (key == "minLength") return static_cast<int64_t>(length(*text)) >= rule.as_int64();
      if (key == "maxLength") return static_cast<int64_t>(length(*text)) <= rule.as_int64();
      if (key == "pattern") return std::regex_search(std::string(*text), std::regex(std::string(rule.as_string())));
    }
    if (const auto* list = value.if_array()) {
      if (key == "minItems") return static_cast<int64_t>(list->size()) >= rule.as_int64();
      if (key == "maxItems") return static_cast<int64_t>(list->size()) <= rule.as_int64();
      if (key == "prefixItems") {
        for (size_t k = 0; k < std::min(list->size(), rule.as_array().size()); ++k) {
          if (!valid((*list)[k], rule.as_array()[k])) return false;
        }
      }
      if (key == "items") {
        if (rule.is_array()) {  // draft 7
          for (size_t k = 0; k < list->size(); ++k) {
            const bool listed = k < rule.as_array().size();
            if (!listed && !schema.contains("additionalItems")) break;
            if (!valid((*list)[k], listed ? rule.as_array()[k] : schema.at("additionalItems"))) return false;
          }
          return true;
        }
        const size_t skip = schema.contains("prefixItems") ? schema.at("prefixItems").as_array().size() : 0;
        for (size_t k = skip; k < list->size(); ++k) {
          if (!valid((*list)[k], rule)) return false;
        }
      }
    }
    if (const auto* members = value.if_object()) {
      if (key == "required")
        return count([&](const Value& name) { return !members->contains(name.get_string()); }) == 0;
      if (key == "properties") {
        for (const auto& [name, sub] : rule.as_object()) {
          if (members->contains(name) && !valid(members->at(name), sub)) return false;
        }
      }
      if (key == "propertyNames") {
        for (const auto& [name, member] : *members)
          if (!valid(Value(name), rule)) return false;
      }
      if (key == "additionalProperties") {
        for (const auto& [name, member] : *members) {
          const bool listed = schema.contains("properties") && schema.at("properties").as_object().contains(name);
          if (!listed && !valid(member, rule)) return false;
        }
      }
    }
    return true;
  }

  const Value& root_;
};

}  // namespace lk::grammar_testing
