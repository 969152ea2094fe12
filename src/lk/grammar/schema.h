// SPDX-License-Identifier: Apache-2.0
// JSON Schema (draft 2020-12) as rules. What cannot be held exactly is refused by the name of its keyword.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lk/grammar/frontends.h"
#include "lk/grammar/json_rules.h"

namespace lk::grammar {

// The types of JSON as bits. kInteger is part of kNumber, which has both.
enum TypeBits : unsigned {
  kNull = 1,
  kBoolean = 2,
  kInteger = 4,
  kFraction = 8,
  kString = 16,
  kArray = 32,
  kObject = 64
};
inline constexpr unsigned kNumber = kInteger | kFraction, kAnyType = 127;

unsigned type_of(const boost::json::value& value);
// Says nothing about what is valid: every keyword that the standard gives no such meaning, and a "format" that is not
// known here.
bool is_annotation(std::string_view keyword, const boost::json::value& value);
// Tuples of draft 7 ("items" as a list, "additionalItems") in the words of 2020-12.
boost::json::object with_new_tuples(const boost::json::object& schema);

// One document: its references, and the merging of schemas that must all hold.
class SchemaDocument {
 public:
  SchemaDocument(boost::json::value root, Budget& budget) : root_(std::move(root)), budget_(budget) {}
  const boost::json::value& root() const { return root_; }
  Result<const boost::json::value*> resolve(std::string_view reference, const std::string& where) const;
  // A schema that holds where both do, without "$ref" and "allOf" of its own.
  Result<boost::json::value> merge(const boost::json::value& a, const boost::json::value& b, const std::string& where,
                                   int depth = 0) const;
  // `schema` with its "allOf", and its "$ref" when other keywords stand beside it, merged into it.
  Result<boost::json::value> flatten(const boost::json::value& schema, const std::string& where, int depth = 0) const;
  // Whether no value is valid for both, as far as types, constants and required properties show.
  Result<bool> disjoint(const boost::json::value& a, const boost::json::value& b, const std::string& where) const;

 private:
  Result<boost::json::object> merge_objects(const boost::json::object& a, const boost::json::object& b,
                                            const std::string& where) const;
  Status merge_properties(const boost::json::object& a, const boost::json::object& b, boost::json::object& out,
                          const std::string& where) const;

  boost::json::value root_;
  Budget& budget_;
};

Result<unsigned> types_of(const boost::json::object& schema,
                          const std::string& where);  // as "type" or the other keywords say
std::optional<std::vector<boost::json::value>> constants_of(
    const boost::json::object& schema);  // of "enum" and "const"

// The ends of "minimum" and its kin; nullopt where there is none.
struct NumberRange {
  std::optional<NumberBound> low, high;
  std::optional<int64_t> low_integer, high_integer;
  bool empty_integers = false;
};
Result<NumberRange> number_range(const boost::json::object& schema, const std::string& where);

}  // namespace lk::grammar
