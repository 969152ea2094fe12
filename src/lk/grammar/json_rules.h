// SPDX-License-Identifier: Apache-2.0
// The parts of JSON as expressions: strings, numbers, white space, objects and arrays. White space is bounded: one
// space, or a line end and an indentation, after "{", "[" and ",", and before "}" and "]"; one space after ":".
#pragma once

#include <boost/json/value.hpp>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lk/grammar/code_points.h"
#include "lk/grammar/ir.h"

namespace lk::grammar {

struct Property {
  std::string key;
  Expr value;
  bool required;
};

// An end of a range of numbers, as decimal digits: [integer].[fraction], without sign.
struct NumberBound {
  bool negative = false;
  std::string integer = "0", fraction;
  bool exclusive = false;
};

class JsonRules {
 public:
  explicit JsonRules(Ir& ir) : ir_(ir) {}

  Expr space() { return call(space_, "white space"); }
  Expr string() { return call(string_, "string"); }
  Expr number() { return call(number_, "number"); }
  Expr integer() { return call(integer_, "integer"); }
  Expr boolean() { return ir_.alt({ir_.literal("true"), ir_.literal("false")}); }
  Expr null() { return ir_.literal("null"); }
  Expr value() { return call(value_, "value"); }

  // A string whose content, each character in its canonical spelling (plain, or the shortest escape), is of `content`.
  Expr string_of(Expr content) { return ir_.seq({ir_.literal("\""), content, ir_.literal("\"")}); }
  // Any string of `min` to `max` (or kUnbounded) characters. With `in_calls`, long ones are counted in blocks, which
  // are rules: then it cannot stand in an intersection.
  Expr string_between(int64_t min, int64_t max, bool in_calls);
  Expr spell(const CodePoints& set);  // one character of the set in its canonical spelling
  Expr constant(const boost::json::value& value);

  // Properties in this order, then any number of additional ones (never(): none), whose keys are different from all
  // `properties`. `names`: what every key must be as well, in quotes and canonical spelling.
  Expr object(const std::vector<Property>& properties, Expr additional, std::optional<Expr> names = {});
  Expr any_object() { return object({}, value()); }
  // prefix[0], prefix[1], ..., then any number of `items`; `min` to `max` elements altogether.
  Expr array(const std::vector<Expr>& prefix, Expr items, int64_t min, int64_t max);

  // `expr` for use in several places, so that it is not copied into each when it is large.
  Expr reuse(Expr expr, bool often = false);

  // Numbers without exponent between two ends; nullopt is no end. The digits of the ends are limited by the caller.
  Expr number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high);
  Expr integer_between(std::optional<int64_t> low, std::optional<int64_t> high);

 private:
  Expr call(std::optional<RuleId>& rule, const char* name);
  Expr define_string();
  Expr define_number(bool integer);
  Expr define_value();
  Expr digits_between(const std::string& low, const std::string& high);
  Expr magnitude_between(uint64_t low, uint64_t high);
  Expr positive_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high);
  Expr comma() { return ir_.seq({ir_.literal(","), space()}); }
  Expr pair(Expr key, Expr value) { return ir_.seq({key, ir_.literal(":"), ir_.optional(ir_.literal(" ")), value}); }

  Ir& ir_;
  std::map<std::vector<CodePoints::Range>, Expr> spellings_;
  std::optional<RuleId> space_, string_, number_, integer_, value_;
  std::optional<RuleId> block_, last_block_;  // of the characters of a string
};

std::string quote_json(std::string_view text);  // canonical spelling, in quotes

}  // namespace lk::grammar
