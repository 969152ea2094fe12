// SPDX-License-Identifier: Apache-2.0
// Parses a hostile JSON file: nesting and memory are bounded, failures carry the file and the byte.
#pragma once

#include <boost/json/value.hpp>
#include <memory>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

class ParsedJson {
 public:
  static Result<ParsedJson> parse(std::string_view text, const std::string& file);
  const boost::json::value& value() const { return *value_; }

 private:
  class BoundedResource;
  std::shared_ptr<BoundedResource> memory_;  // owns what value_ points to
  std::shared_ptr<boost::json::value> value_;
};

}  // namespace lk
