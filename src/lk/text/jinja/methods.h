// SPDX-License-Identifier: Apache-2.0
// Methods of str, list, tuple and dict that do not mutate (the sandbox refuses the others).
#pragma once

#include <string_view>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

// True for the methods that exist in Python and the sandbox allows, supported here or not.
bool has_method(const Value& self, std::string_view name);
Value make_method(const Value& self, std::string_view name);  // a bound method

}  // namespace lk::jinja
