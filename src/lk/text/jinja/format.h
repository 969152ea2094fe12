// SPDX-License-Identifier: Apache-2.0
// Python's three formatting languages: "%s" % x, "{}".format(x), and the format spec they share.
#pragma once

#include <string_view>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

Value printf_format(Runtime& runtime, std::string_view format, const Value& arguments);
Value str_format(Runtime& runtime, std::string_view format, const Arguments& arguments);

}  // namespace lk::jinja
