// SPDX-License-Identifier: Apache-2.0
// Filters (value | name) and tests (value is name), by name.
#pragma once

#include <string_view>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

// TemplateError naming the filter or test if there is none.
void require_filter(std::string_view name);
void require_test(std::string_view name);
bool has_filter(std::string_view name);
bool has_test(std::string_view name);

Value apply_filter(Runtime& runtime, std::string_view name, const Value& value, const Arguments& arguments);
bool apply_test(Runtime& runtime, std::string_view name, const Value& value, const Arguments& arguments);

// What a filter function gets: `value | name(arguments)`.
struct FilterCall {
  Runtime& runtime;
  const Value& value;
  std::string_view name;
  const Arguments& arguments;
  std::vector<const Value*> bind(std::initializer_list<std::string_view> names, size_t num_required = 0) const {
    return arguments.bind(name, names, num_required);
  }
  bool flag(const Value* argument) const { return argument != nullptr && truthy(*argument); }
  int64_t integer_or(const Value* argument, int64_t absent) const;
};
struct FilterEntry {
  std::string_view name;
  Value (*function)(const FilterCall&);  // null: exists in jinja2, not supported here
};
// Filters over sequences are a table of their own (jinja_sequence_filters.cpp).
const FilterEntry* find_sequence_filter(std::string_view name);

}  // namespace lk::jinja
