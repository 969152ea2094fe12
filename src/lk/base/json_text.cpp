// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_text.h"

#include <boost/json.hpp>

#include <cmath>

namespace lk {
namespace {

namespace json = boost::json;

bool all_finite(const json::value& value) {
  if (value.is_double()) return std::isfinite(value.get_double());
  if (value.is_array()) {
    for (const json::value& item : value.get_array())
      if (!all_finite(item)) return false;
  } else if (value.is_object()) {
    for (const auto& [key, item] : value.get_object())
      if (!all_finite(item)) return false;
  }
  return true;
}

void clear_others(json::value& value) {
  if (value.is_double() && !std::isfinite(value.get_double())) value = nullptr;
  if (value.is_array())
    for (json::value& item : value.get_array()) clear_others(item);
  else if (value.is_object())
    for (auto& [key, item] : value.get_object()) clear_others(item);
}

}  // namespace

std::string json_text(const json::value& value) {
  if (all_finite(value)) return json::serialize(value);
  json::value copy = value;
  clear_others(copy);
  return json::serialize(copy);
}

}  // namespace lk
