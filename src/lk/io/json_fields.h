// SPDX-License-Identifier: Apache-2.0
// JsonFields: typed, range-checked reading of one JSON object from an untrusted file. The first
// failure sticks and names the file and the field, so callers read all fields and check status()
// once.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// Parses a document that must be one object. `where` (a path) prefixes errors.
Result<boost::json::object> parse_json_object(std::string_view json, std::string_view where);

// directory/file as a JSON object, at most 16 MB.
Result<boost::json::object> load_json_object(const std::string& path);

// The kind of a value in words: "a string", "an object", "null".
const char* json_kind(const boost::json::value& value);

// An integer, or a number without a fraction such as 2048.0.
std::optional<int64_t> json_integer(const boost::json::value& value);

// The object must outlive the reader. All read_* leave `out` as it is when the field is absent or
// null.
class JsonFields {
 public:
  JsonFields(const boost::json::object& object, std::string where) : object_(object), where_(std::move(where)) {}

  // The field's value; nullptr when absent or null. Marks the key as known.
  const boost::json::value* find(std::string_view key);
  bool contains(std::string_view key) const { return object_.contains(key); }

  void read_int(std::string_view key, int64_t& out, int64_t min, int64_t max);
  void read_double(std::string_view key, double& out, double min = -std::numeric_limits<double>::max(),
                   double max = std::numeric_limits<double>::max());
  void read_bool(std::string_view key, bool& out);
  void read_string(std::string_view key, std::string& out);
  // A list of integers, or a single one.
  void read_ints(std::string_view key, std::vector<int64_t>& out, int64_t min, int64_t max);
  // A list of strings.
  void read_strings(std::string_view key, std::vector<std::string>& out);

  // Records the first failure.
  void fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  void wrong_kind(std::string_view key, std::string_view expected, const boost::json::value& found);
  const Status& status() const { return status_; }
  const std::string& where() const { return where_; }

  void mark_known(std::string_view key) { known_.emplace(key); }
  std::vector<std::string> unknown_keys() const;

 private:
  const boost::json::object& object_;
  std::string where_;
  Status status_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace lk
