// SPDX-License-Identifier: Apache-2.0
// Markup of markupsafe: what the filters safe and escape give. Such a string stays markup through most operations, and
// escapes the plain strings it meets.
#pragma once

#include <string>
#include <string_view>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

std::string escape_html(std::string_view text);

// str(value), as markup; what already is markup stays as it is, plain text is not escaped.
Value as_markup(Runtime& runtime, const Value& value);
// A value that goes into markup: text is escaped, unless it is markup; numbers are what they are; of anything else its
// text. With `parts` (what stands behind %) that is done to the parts of a tuple or dict.
Value escaped(Runtime& runtime, const Value& value, bool parts = false);
// The result of a method of a markup string: strings in it are markup.
Value markup_result(Runtime& runtime, const Value& result);
// The arguments of such a method, escaped where markupsafe does it.
Arguments markup_arguments(Runtime& runtime, std::string_view method, const Arguments& arguments);

}  // namespace lk::jinja
