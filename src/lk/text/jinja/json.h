// SPDX-License-Identifier: Apache-2.0
// Between JSON and template values: the variables coming in, the tojson filter going out.
#pragma once

#include <boost/json/value.hpp>

#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

Value from_json(Runtime& runtime, const boost::json::value& json);

// The tojson filter of transformers: json.dumps(x, ensure_ascii=False, indent=None,
// separators=None, sort_keys=False), not the HTML-escaping one of jinja2.
Value to_json(Runtime& runtime, const Value& value, const Arguments& arguments);

}  // namespace lk::jinja
