// SPDX-License-Identifier: Apache-2.0
// Typed, bounded reading of one object of a request. The first failure sticks, in an ApiError whose param is the
// field's path.
#pragma once

#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/serve/openai/openai.h"

namespace lk::openai {

// The first error of a request.
struct FirstError {
  std::optional<ApiError> error;
  void set(std::string param, std::string message) {
    if (!error) error = ApiError{.status = 400, .message = std::move(message), .param = std::move(param)};
  }
};

// All read_* leave `out` alone when the field is absent or null. The object and the error must outlive the reader.
class ApiFields {
 public:
  ApiFields(const boost::json::object& object, std::string path, FirstError& error)
      : object_(object), path_(std::move(path)), error_(error) {}

  // nullptr when absent or null. Marks the key as known.
  const boost::json::value* find(std::string_view key);
  bool has(std::string_view key) const;  // present and not null

  void read_bool(std::string_view key, bool& out);
  template <class T>
  void read_int(std::string_view key, T& out, int64_t min, int64_t max) {
    if (const auto number = integer(key, min, max)) out = static_cast<T>(*number);
  }
  std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max);
  // `above`: min itself is not allowed.
  void read_double(std::string_view key, double& out, double min, double max, bool above = false);
  void read_string(std::string_view key, std::string& out, size_t min_bytes, size_t max_bytes);
  // One of these words; others are refused with the list.
  void read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& words);
  // A string or a list of strings.
  void read_strings(std::string_view key, std::vector<std::string>& out, size_t max_count, size_t min_bytes,
                    size_t max_bytes);
  // A list of token ids in [0, vocab_size).
  void read_tokens(std::string_view key, std::vector<int32_t>& out, int64_t vocab_size, size_t max_count);
  const boost::json::object* object(std::string_view key);
  const boost::json::array* array(std::string_view key, size_t max_count);

  // The field may only be absent, null, false, 0, "" or empty.
  void refuse(std::string_view key, std::string_view reason);
  void ignore(std::string_view key) { known_.insert(std::string(key)); }
  void unknown(std::vector<std::string>& names) const;

  template <class... Args>
  void fail(std::string_view key, fmt::format_string<Args...> format, Args&&... args) {
    error_.set(path(key), fmt::format("\"{}\" {}", path(key), fmt::format(format, std::forward<Args>(args)...)));
  }
  void wrong_kind(std::string_view key, std::string_view expected, const boost::json::value& found);
  std::string path(std::string_view key) const {
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  }
  FirstError& error() { return error_; }
  bool failed() const { return error_.error.has_value(); }

 private:
  const boost::json::object& object_;
  std::string path_;  // "" for the request itself, "messages[0]"
  FirstError& error_;
  std::set<std::string, std::less<>> known_;
};

// Token ids of a list; the error names `param`.
bool to_tokens(const boost::json::array& list, const std::string& param, int64_t vocab_size, std::vector<int32_t>& out,
               FirstError& error);

}  // namespace lk::openai
