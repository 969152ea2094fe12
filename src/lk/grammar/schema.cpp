// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/schema.h"

#include <boost/json.hpp>
#include <cmath>
#include <deque>
#include <iterator>

#include "lk/grammar/regex_grammar.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

namespace json = boost::json;

class SchemaCompiler {
 public:
  SchemaCompiler(Ir& ir, const SchemaDocument& document, const GrammarLimits& limits, Budget& budget)
      : ir_(ir), rules_(ir), document_(document), limits_(limits), budget_(budget) {}

  Result<RuleId> run() {
    const RuleId root = rule_of(document_.root(), "#");
    while (!pending_.empty()) {
      const auto [rule, schema, where] = pending_.front();
      pending_.pop_front();
      LK_ASSIGN_OR_RETURN(const Expr body, compile(*schema, where, 0));
      ir_.define(rule, body);
    }
    return root;
  }

 private:
  struct Pending {
    RuleId rule;
    const json::value* schema;
    std::string where;
  };

  // Schemas that are referred to become rules; they are compiled later, so that they may refer to themselves.
  RuleId rule_of(const json::value& schema, const std::string& where) {
    const auto [at, added] = by_schema_.try_emplace(&schema, 0);
    if (added) {
      at->second = ir_.add_rule(where);
      pending_.push_back({at->second, &schema, where});
    }
    return at->second;
  }

  Result<Expr> compile(const json::value& schema, const std::string& where, int depth) {
    if (!budget_.spend(0)) return budget_.status();
    if (ir_.memory() > limits_.max_compiled_bytes)
      return invalid_argument("{}: the schema is too large when compiled", where);
    if (depth > limits_.max_depth)
      return invalid_argument("{}: schemas are nested more than {} deep", where, limits_.max_depth);
    if (const bool* any = schema.if_bool()) return *any ? rules_.value() : ir_.never();
    const json::object* object = schema.if_object();
    if (object == nullptr) return invalid_argument("{}: a schema must be an object or a boolean", where);
    LK_RETURN_IF_ERROR(check_keywords(*object, where));
    if (const json::value* items = object->if_contains("items"); items != nullptr && items->is_array()) {
      if (object->contains("prefixItems"))
        return invalid_argument("{}: \"items\" beside \"prefixItems\" must be a schema", where);
      return compile(with_new_tuples(*object), where, depth);
    }
    if (const json::value* reference = object->if_contains("$ref"); reference != nullptr && is_alone(*object, "$ref")) {
      if (!reference->is_string()) return invalid_argument("{}: \"$ref\" must be a string", where);
      const std::string target(reference->get_string());
      LK_ASSIGN_OR_RETURN(const json::value* to, document_.resolve(target, where));
      return ir_.call(rule_of(*to, target));
    }
    if (object->contains("$ref") || object->contains("allOf")) {
      LK_ASSIGN_OR_RETURN(const json::value flat, document_.flatten(schema, where));
      return compile(flat, where, depth + 1);
    }
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (object->contains(keyword)) return any_of(*object, keyword, where, depth);
    }
    if (const auto constants = constants_of(*object)) return enumeration(*object, *constants, where);
    return by_type(*object, where, depth);
  }

  static bool is_alone(const json::object& schema, std::string_view keyword) {
    for (const auto& [key, value] : schema) {
      if (std::string_view(key) != keyword && !is_annotation(key, value)) return false;
    }
    return true;
  }

  Status check_keywords(const json::object& schema, const std::string& where) const {
    static const std::vector<std::string_view> known = {"type",
                                                        "enum",
                                                        "const",
                                                        "properties",
                                                        "required",
                                                        "additionalProperties",
                                                        "items",
                                                        "propertyNames",
                                                        "prefixItems",
                                                        "additionalItems",
                                                        "minItems",
                                                        "maxItems",
                                                        "minLength",
                                                        "maxLength",
                                                        "pattern",
                                                        "format",
                                                        "minimum",
                                                        "maximum",
                                                        "anyOf",
                                                        "oneOf",
                                                        "allOf",
                                                        "$ref",
                                                        "exclusiveMinimum",
                                                        "exclusiveMaximum"};
    for (const auto& [key, value] : schema) {
      const std::string_view keyword(key);
      if (is_annotation(keyword, value) || std::find(known.begin(), known.end(), keyword) != known.end()) continue;
      if (keyword == "uniqueItems" && value.is_bool() && !value.get_bool()) continue;
      return invalid_argument("{}: the keyword \"{}\" is not supported", where, keyword);
    }
    return {};
  }

  Result<Expr> any_of(const json::object& schema, const char* keyword, const std::string& where, int depth) {
    const json::array* branches = schema.at(keyword).if_array();
    if (branches == nullptr || branches->empty())
      return invalid_argument("{}: \"{}\" must be a non-empty array", where, keyword);
    json::object rest = schema;
    rest.erase(keyword);
    if (std::string_view(keyword) == "oneOf") {
      for (size_t a = 0; a < branches->size(); ++a) {
        for (size_t b = a + 1; b < branches->size(); ++b) {
          if (!budget_.spend(0)) return budget_.status();
          LK_ASSIGN_OR_RETURN(const bool disjoint, document_.disjoint((*branches)[a], (*branches)[b], where));
          if (disjoint) continue;
          return invalid_argument(
              "{}: \"oneOf\" is supported when types, constants or required properties show that no two branches hold "
              "together; branches {} and {} might: use \"anyOf\"",
              where, a, b);
        }
      }
    }
    const bool alone = is_alone(schema, keyword);
    std::vector<Expr> parts;
    for (size_t k = 0; k < branches->size(); ++k) {
      const std::string place = fmt::format("{}/{}/{}", where, keyword, k);
      if (alone) {
        LK_ASSIGN_OR_RETURN(const Expr part, compile((*branches)[k], place, depth + 1));
        parts.push_back(part);
      } else {
        LK_ASSIGN_OR_RETURN(const json::value both, document_.merge(rest, (*branches)[k], place));
        LK_ASSIGN_OR_RETURN(const Expr part, compile(both, place, depth + 1));
        parts.push_back(part);
      }
    }
    return ir_.alt(std::move(parts));
  }

  Result<Expr> enumeration(const json::object& schema, const std::vector<json::value>& constants,
                           const std::string& where) {
    LK_ASSIGN_OR_RETURN(const unsigned types,
                        schema.contains("type") ? types_of(schema, where) : Result<unsigned>(kAnyType));
    LK_RETURN_IF_ERROR(number_range(schema, where).status());  // its bounds are numbers
    std::vector<Expr> parts;
    for (const json::value& constant : constants) {
      const unsigned type = type_of(constant);
      if ((type & types) == 0) continue;
      if ((type & kNumber) != 0 && !is_within(constant.to_number<double>(), schema)) continue;
      if (type == kArray || type == kObject) LK_RETURN_IF_ERROR(check_beside_constant(schema, type, where));
      if (type == kArray) {
        LK_ASSIGN_OR_RETURN(const int64_t min, count(schema, "minItems", 0, where));
        LK_ASSIGN_OR_RETURN(const int64_t max, count(schema, "maxItems", kUnbounded, where));
        const auto size = static_cast<int64_t>(constant.get_array().size());
        if (size < min || (max != kUnbounded && size > max)) continue;
      }
      Expr part = rules_.constant(constant);
      if (type == kString && bounds_text(schema)) {
        // A constant with a format is what its author calls so.
        json::object bounds = schema;
        bounds.erase("format");
        LK_ASSIGN_OR_RETURN(const Expr bounded, string(bounds, where));
        part = ir_.both(part, bounded);
      }
      parts.push_back(part);
    }
    return ir_.alt(std::move(parts));
  }

  static bool bounds_text(const json::object& schema) {
    return schema.contains("minLength") || schema.contains("maxLength") || schema.contains("pattern");
  }

  static bool is_within(double number, const json::object& schema) {
    const auto bound = [&](const char* keyword, auto holds) {
      const json::value* value = schema.if_contains(keyword);
      return value == nullptr || !value->is_number() || holds(value->to_number<double>());
    };
    return bound("minimum", [&](double low) { return number >= low; }) &&
           bound("maximum", [&](double high) { return number <= high; }) &&
           bound("exclusiveMinimum", [&](double low) { return number > low; }) &&
           bound("exclusiveMaximum", [&](double high) { return number < high; });
  }

  // What is said of the parts of a constant list or object beside it.
  Status check_beside_constant(const json::object& schema, unsigned type, const std::string& where) const {
    static const std::vector<std::string_view> of_lists = {"items", "prefixItems", "additionalItems"};
    static const std::vector<std::string_view> of_objects = {"properties", "required", "additionalProperties",
                                                             "propertyNames"};
    for (const std::string_view keyword : type == kArray ? of_lists : of_objects)
      if (schema.contains(keyword))
        return invalid_argument("{}: the keyword \"{}\" beside \"enum\" or \"const\" is not supported", where, keyword);
    return {};
  }

  Result<Expr> by_type(const json::object& schema, const std::string& where, int depth) {
    LK_ASSIGN_OR_RETURN(const unsigned types, types_of(schema, where));
    if (types == kAnyType && is_alone(schema, "type")) return rules_.value();
    std::vector<Expr> parts;
    if (types & kNull) parts.push_back(rules_.null());
    if (types & kBoolean) parts.push_back(rules_.boolean());
    if (types & kNumber) {
      LK_ASSIGN_OR_RETURN(const Expr part, number(schema, (types & kFraction) == 0, where));
      parts.push_back(part);
    }
    if (types & kString) {
      LK_ASSIGN_OR_RETURN(const Expr part, string(schema, where, true));
      parts.push_back(part);
    }
    if (types & kArray) {
      LK_ASSIGN_OR_RETURN(const Expr part, array(schema, where, depth));
      parts.push_back(part);
    }
    if (types & kObject) {
      LK_ASSIGN_OR_RETURN(const Expr part, object(schema, where, depth));
      parts.push_back(part);
    }
    return ir_.alt(std::move(parts));
  }

  Result<Expr> number(const json::object& schema, bool integer, const std::string& where) {
    LK_ASSIGN_OR_RETURN(const NumberRange range, number_range(schema, where));
    if (!range.low.has_value() && !range.high.has_value()) return integer ? rules_.integer() : rules_.number();
    if (!integer) return rules_.number_between(range.low, range.high);
    return range.empty_integers ? ir_.never() : rules_.integer_between(range.low_integer, range.high_integer);
  }

  // A limit such as "minLength"; `fallback` if absent.
  Result<int64_t> count(const json::object& schema, const char* keyword, int64_t fallback,
                        const std::string& where) const {
    const json::value* value = schema.if_contains(keyword);
    if (value == nullptr) return fallback;
    int64_t number = -1;
    if (const auto* i = value->if_int64()) number = *i;
    if (const auto* d = value->if_double(); d != nullptr && *d >= 0 && *d <= 1e9 && *d == std::floor(*d))
      number = static_cast<int64_t>(*d);
    if (value->is_uint64()) number = int64_t{1} << 40;
    if (number < 0) return invalid_argument("{}: \"{}\" must be a whole number that is not negative", where, keyword);
    if (number > kMaxRepeat) return invalid_argument("{}: \"{}\" is more than {}", where, keyword, kMaxRepeat);
    ir_.note_count(number, fmt::format("\"{}\" in {}", keyword, where));
    return number;
  }

  // `alone`: it will not stand in an intersection.
  Result<Expr> string(const json::object& schema, const std::string& where, bool alone = false) {
    LK_ASSIGN_OR_RETURN(const int64_t min, count(schema, "minLength", 0, where));
    LK_ASSIGN_OR_RETURN(const int64_t max, count(schema, "maxLength", kUnbounded, where));
    if (max != kUnbounded && min > max) return ir_.never();
    const RegexOptions search{.max_depth = limits_.max_depth,
                              .spell = [this](const CodePoints& set) { return rules_.spell(set); },
                              .search = true};
    std::vector<Expr> conditions;
    if (const json::value* pattern = schema.if_contains("pattern")) {
      if (!pattern->is_string()) return invalid_argument("{}: \"pattern\" must be a string", where);
      auto expr = parse_regex(ir_, std::string_view(pattern->get_string()), search, budget_);
      if (!expr.ok()) return expr.status().with_context(where);
      conditions.push_back(*expr);
    }
    int64_t least = min, most = max;  // what is left to be counted
    if (const json::value* name = schema.if_contains("format")) {
      if (!name->is_string()) return invalid_argument("{}: \"format\" must be a string", where);
      if (const Format* format = find_format(std::string_view(name->get_string()))) {
        LK_ASSIGN_OR_RETURN(const Expr expr, formatted(*format, most));
        conditions.push_back(expr);
        if (least == 1) least = 0;
      }
    }
    if (least > 0 || most != kUnbounded) {
      if (conditions.empty()) return rules_.string_between(least, most, alone);
      conditions.push_back(
          ir_.repeat(rules_.spell(CodePoints::all()), static_cast<int>(least), static_cast<int>(most)));
    }
    if (conditions.empty()) return rules_.string();
    Expr content = conditions[0];
    for (size_t k = 1; k < conditions.size(); ++k) content = ir_.both(content, conditions[k]);
    return rules_.string_of(content);
  }

  // The texts of a format. A bound `most` that holds for all of them, or for all with a tail of some length, is
  // unbounded from then on: counting the whole would take each of its places as often as it can stand somewhere.
  Result<Expr> formatted(const Format& format, int64_t& most) {
    const RegexOptions whole{.max_depth = limits_.max_depth,
                             .spell = [this](const CodePoints& set) { return rules_.spell(set); }};
    LK_ASSIGN_OR_RETURN(const Expr head, parse_regex(ir_, format.head, whole, budget_));
    if (format.tail.empty()) {
      if (most >= format.max_head) most = kUnbounded;
      return head;
    }
    LK_ASSIGN_OR_RETURN(Expr tail, parse_regex(ir_, format.tail, whole, budget_));
    if (most >= format.max_head) {
      const auto left = static_cast<int>(most - format.max_head);
      tail = ir_.both(tail, ir_.repeat(rules_.spell(CodePoints::all()), 0, left));
      most = kUnbounded;
    }
    return ir_.seq({head, tail});
  }

  Result<Expr> array(const json::object& schema, const std::string& where, int depth) {
    LK_ASSIGN_OR_RETURN(const int64_t min, count(schema, "minItems", 0, where));
    LK_ASSIGN_OR_RETURN(const int64_t max, count(schema, "maxItems", kUnbounded, where));
    std::vector<Expr> prefix;
    if (const json::value* list = schema.if_contains("prefixItems")) {
      if (!list->is_array()) return invalid_argument("{}: \"prefixItems\" must be an array", where);
      for (const json::value& item : list->get_array()) {
        LK_ASSIGN_OR_RETURN(const Expr expr,
                            compile(item, fmt::format("{}/prefixItems/{}", where, prefix.size()), depth + 1));
        prefix.push_back(expr);
      }
    }
    Expr items = ir_.never();
    if (const json::value* item = schema.if_contains("items")) {
      if (max != 0) {
        LK_ASSIGN_OR_RETURN(items, compile(*item, where + "/items", depth + 1));
      }
    } else {
      items = rules_.value();
    }
    return rules_.array(prefix, items, min, max);
  }

  Result<Expr> object(const json::object& schema, const std::string& where, int depth) {
    std::vector<std::string> required;
    if (const json::value* list = schema.if_contains("required")) {
      if (!list->is_array()) return invalid_argument("{}: \"required\" must be an array", where);
      for (const json::value& name : list->get_array()) {
        if (!name.is_string()) return invalid_argument("{}: \"required\" must be an array of strings", where);
        required.emplace_back(name.get_string());
      }
    }
    const auto is_required = [&](std::string_view name) {
      return std::find(required.begin(), required.end(), name) != required.end();
    };
    std::vector<Property> properties;
    if (const json::value* list = schema.if_contains("properties")) {
      if (!list->is_object()) return invalid_argument("{}: \"properties\" must be an object", where);
      for (const auto& [key, value] : list->get_object()) {
        const std::string name(key);
        LK_ASSIGN_OR_RETURN(const Expr expr, compile(value, where + "/properties/" + name, depth + 1));
        properties.push_back({name, expr, is_required(name)});
      }
    }
    Expr additional = rules_.value();
    if (const json::value* rest = schema.if_contains("additionalProperties")) {
      LK_ASSIGN_OR_RETURN(additional, compile(*rest, where + "/additionalProperties", depth + 1));
    }
    std::optional<Expr> names;
    if (const json::value* rule = schema.if_contains("propertyNames")) {
      LK_ASSIGN_OR_RETURN(names, property_names(*rule, where + "/propertyNames", depth + 1));
    }
    if (!required.empty()) additional = rules_.reuse(additional);
    for (const std::string& name : required) {  // required, but not described
      const bool listed =
          std::any_of(properties.begin(), properties.end(), [&](const Property& p) { return p.key == name; });
      if (!listed) properties.push_back({name, additional, true});
    }
    return rules_.object(properties, additional, names);
  }

  // What "propertyNames" says of a key, in quotes; nothing when every key will do. Without calls of rules, so that it
  // can be compared with the keys that are listed.
  Result<std::optional<Expr>> property_names(const json::value& schema, const std::string& where, int depth) {
    using Names = std::optional<Expr>;
    if (depth > limits_.max_depth)
      return invalid_argument("{}: schemas are nested more than {} deep", where, limits_.max_depth);
    LK_ASSIGN_OR_RETURN(const json::value flat, document_.flatten(schema, where));
    if (const bool* any = flat.if_bool()) return *any ? Names() : Names(ir_.never());
    const json::object& object = flat.get_object();
    LK_RETURN_IF_ERROR(check_keywords(object, where));
    for (const char* keyword : {"anyOf", "oneOf"}) {
      const json::value* branches = object.if_contains(keyword);
      if (branches == nullptr) continue;
      if (!branches->is_array() || !is_alone(object, keyword))
        return invalid_argument("{}: only \"{}\" by itself is supported in \"propertyNames\"", where, keyword);
      std::vector<Expr> parts;
      for (const json::value& branch : branches->get_array()) {
        LK_ASSIGN_OR_RETURN(const Names part, property_names(branch, where, depth + 1));
        if (!part) return Names();
        parts.push_back(*part);
      }
      return Names(ir_.alt(std::move(parts)));
    }
    LK_ASSIGN_OR_RETURN(const unsigned types,
                        object.contains("type") ? types_of(object, where) : Result<unsigned>(kAnyType));
    if ((types & kString) == 0) return Names(ir_.never());
    if (const auto constants = constants_of(object)) {
      std::vector<json::value> texts;
      std::ranges::copy_if(*constants, std::back_inserter(texts), &json::value::is_string);
      LK_ASSIGN_OR_RETURN(const Expr part, enumeration(object, texts, where));
      return Names(part);
    }
    const json::value* format = object.if_contains("format");
    if (!bounds_text(object) && (format == nullptr || is_annotation("format", *format))) return Names();
    LK_ASSIGN_OR_RETURN(const Expr part, string(object, where));
    return Names(part);
  }

  Ir& ir_;
  JsonRules rules_;
  const SchemaDocument& document_;
  const GrammarLimits& limits_;
  Budget& budget_;
  std::map<const json::value*, RuleId> by_schema_;
  std::deque<Pending> pending_;
};

}  // namespace

Result<RuleId> translate_schema(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
  json::parse_options options;
  options.max_depth = static_cast<size_t>(4 * limits.max_depth);  // a schema has several levels of JSON
  boost::system::error_code failure;
  json::value root = json::parse(text, failure, {}, options);
  if (failure) return invalid_argument("schema: not valid JSON, or nested too deep: {}", failure.message());
  const SchemaDocument document(std::move(root), budget);
  return SchemaCompiler(ir, document, limits, budget).run();
}

}  // namespace lk::grammar
