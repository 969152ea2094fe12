// SPDX-License-Identifier: Apache-2.0
// Operators of the template language with Python's semantics; integers are 64-bit and overflow
// fails.
#pragma once

#include <string_view>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

Value binary(Runtime& runtime, std::string_view op, const Value& a,
             const Value& b);  // + - * / // % **
Value negative(const Value& value);
Value positive(const Value& value);
bool contains(Runtime& runtime, const Value& container, const Value& item);
int64_t length(const Value& value);  // len()

// object[key] and object.name: what is missing is undefined, not an error; on undefined both fail.
Value get_item(Runtime& runtime, const Value& object, const Value& key);
Value get_attribute(Runtime& runtime, const Value& object, std::string_view name);
// object[start:stop:step]; none bounds are absent.
Value slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step);

}  // namespace lk::jinja
