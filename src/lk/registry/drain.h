// SPDX-License-Identifier: Apache-2.0
// Drains: somebody wants a replica to end, under drains/ID. The value says which incarnation of it: one that was
// started again is not meant.
#pragma once

#include <string>
#include <string_view>

#include <boost/json/object.hpp>

#include "lk/base/json_text.h"

namespace lk {

inline constexpr std::string_view kDrains = "drains/";

inline std::string format_drain(std::string_view incarnation) {
  return json_text(boost::json::object{{"form", 1}, {"incarnation", incarnation}});
}

}  // namespace lk
