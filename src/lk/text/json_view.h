// SPDX-License-Identifier: Apache-2.0
// A JSON value together with where it stands ("file: model.merges[3]"), and typed access that fails
// naming the place.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// Borrows the value: it must outlive the view.
class JsonView {
 public:
  JsonView(const boost::json::value& value, std::string file, std::string path = "")
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const boost::json::value& raw() const { return *value_; }
  std::string where() const { return path_.empty() ? file_ : file_ + ": " + path_; }
  bool is_null() const { return value_->is_null(); }
  bool has(std::string_view key) const;  // present and not null

  // Each fails with kDataLoss "<where>.<key>: is missing" or ": must be a string, is a list".
  Result<JsonView> field(std::string_view key) const;
  Result<std::string_view> string() const;
  Result<bool> boolean() const;
  Result<int64_t> integer(int64_t min, int64_t max) const;
  // kUnsupported for more than `most`: each view is far larger than "0," in a file.
  static constexpr size_t kMostItems = 1 << 19;
  Result<std::vector<JsonView>> array(size_t most = kMostItems) const;
  Status expect_object() const;

  Result<std::string_view> string(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;  // absent or null: fallback
  Result<std::vector<JsonView>> array(std::string_view key, size_t most = kMostItems) const;

  template <class... Args>
  Status error(StatusCode code, fmt::format_string<Args...> format, Args&&... args) const {
    return failed(code, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  Status failed(StatusCode code, std::string_view message) const;
  const boost::json::value* value_;
  std::string file_;
  std::string path_;
};

}  // namespace lk
