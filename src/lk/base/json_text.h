// SPDX-License-Identifier: Apache-2.0
// The one place where JSON values become text.
#pragma once

#include <string>

#include <boost/json/value.hpp>

namespace lk {

// JSON has no NaN and no infinity: such numbers become null. (boost::json::serialize() would write NaN and 1e99999,
// which no parser takes back; tools/check_includes.py keeps everybody from calling it.)
std::string json_text(const boost::json::value& value);

}  // namespace lk
