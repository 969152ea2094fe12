// SPDX-License-Identifier: Apache-2.0
// JsonFields: typed, bounded reading of one JSON object from outside: a request, a line of a batch, a file. The first
// failure sticks, in a JsonErrors that the readers of all objects of the document share, and names the field by its
// path; so callers read all fields and look once.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "lk/base/status.h"

namespace lk {

// Parses a document that must be one object, as files of others are written: of equal keys the last counts. `where` (a
// path) prefixes errors. For what must be strict, read_json() of json_reader.h.
Result<boost::json::object> parse_json_object(std::string_view json, std::string_view where);

// The file as a JSON object, at most 16 MB.
Result<boost::json::object> load_json_object(const std::string& path);

// The kind of a value in words: "a string", "an object", "null".
const char* json_kind(const boost::json::value& value);

// An integer, or a number without a fraction such as 2048.0.
std::optional<int64_t> json_integer(const boost::json::value& value);

// "" when low <= value <= high (above: low itself is out), else `must be at least 0 and at most 2, is 3`.
std::string number_problem(double value, double low, double high, bool above = false);

// What is wrong with a document: the first of it.
class JsonErrors {
 public:
  struct Style {
    std::string where = {};     // "config.json": stands before every message
    const char* noun = "";      // before the field's name: "field "
    bool shows_values = false;  // repeats the wrong value, not only its kind
  };
  JsonErrors() = default;
  explicit JsonErrors(Style style) : style_(std::move(style)) {}

  bool failed() const { return !status_.ok(); }
  const Status& status() const { return status_; }
  const std::string& path() const { return path_; }  // of the field, "" = none in particular
  const std::string& where() const { return style_.where; }

  // The message says all: `"n" and "best_of" differ`.
  void set(std::string path, std::string message);
  // The field's path goes before the rest: `must be positive`.
  void fail(const std::string& path, std::string_view rest);
  void wrong_kind(const std::string& path, std::string_view expected, const boost::json::value& found);
  void wrong_integer(const std::string& path, int64_t min, int64_t max, const boost::json::value& found);
  // For failures of another code than kInvalidArgument; the message is complete.
  void set(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

 private:
  Style style_;
  Status status_;
  std::string path_;
};

// The object and the errors must outlive the reader. All read_* leave `out` as it is when the field is absent or null.
class JsonFields {
 public:
  static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

  // A document: `where` goes before every message.
  JsonFields(const boost::json::object& object, std::string where)
      : object_(object), own_({.where = std::move(where)}), errors_(own_), read_(object.size()) {}
  // A part of one: `path` ("", "messages[0]") goes before every name.
  JsonFields(const boost::json::object& object, std::string path, JsonErrors& errors)
      : object_(object), path_(std::move(path)), errors_(errors), read_(object.size()) {}
  JsonFields(const JsonFields&) = delete;
  JsonFields& operator=(const JsonFields&) = delete;

  // nullptr when absent or null. Marks the field as known.
  const boost::json::value* find(std::string_view key);
  bool has(std::string_view key) const;  // present and not null
  bool contains(std::string_view key) const { return object_.contains(key); }
  void mark_known(std::string_view key) { find(key); }
  // Fields that nobody asked for, by their paths, each as clean_text() of 64 bytes; at most so many.
  std::vector<std::string> unknown(size_t max_count = kNoLimit) const;
  void refuse_unknown();

  void read_bool(std::string_view key, bool& out);
  template <class T>
  void read_int(std::string_view key, T& out, int64_t min, int64_t max) {
    if (const auto number = integer(key, min, max)) out = static_cast<T>(*number);
  }
  std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max);
  // `above`: min itself is not allowed.
  void read_double(std::string_view key, double& out, double min = -std::numeric_limits<double>::max(),
                   double max = std::numeric_limits<double>::max(), bool above = false);
  void read_string(std::string_view key, std::string& out, size_t min_bytes = 0, size_t max_bytes = kNoLimit);
  // One of these words; others are refused with the list.
  void read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& words);
  // A list of strings.
  void read_strings(std::string_view key, std::vector<std::string>& out);
  // A string or a list of strings, each of so many bytes.
  void read_one_or_more(std::string_view key, std::vector<std::string>& out, size_t max_count, size_t min_bytes,
                        size_t max_bytes);
  // An integer or a list of integers.
  void read_ints(std::string_view key, std::vector<int64_t>& out, int64_t min, int64_t max);
  // A list of token ids in [0, vocab_size).
  void read_tokens(std::string_view key, std::vector<int32_t>& out, int64_t vocab_size, size_t max_count);
  const boost::json::object* object(std::string_view key);
  const boost::json::array* array(std::string_view key, size_t max_count = kNoLimit);

  // The field may only be absent, null, false, 0, "" or empty.
  void refuse(std::string_view key, std::string_view reason);

  template <class... Args>
  void fail(std::string_view key, fmt::format_string<Args...> format, Args&&... args) {
    errors_.fail(path(key), fmt::format(format, std::forward<Args>(args)...));
  }
  void fail(Status status) { errors_.set(std::move(status)); }
  void wrong_kind(std::string_view key, std::string_view expected, const boost::json::value& found) {
    errors_.wrong_kind(path(key), expected, found);
  }

  std::string path(std::string_view key) const {
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  }
  JsonErrors& errors() { return errors_; }
  bool failed() const { return errors_.failed(); }
  const Status& status() const { return errors_.status(); }
  const std::string& where() const { return errors_.where(); }

 private:
  const boost::json::object& object_;
  std::string path_;
  JsonErrors own_;
  JsonErrors& errors_;
  std::vector<bool> read_;  // per member of the object: somebody asked for it
};

// Token ids of a list, each in [0, vocab_size); the error names `path`.
bool read_token_list(const boost::json::array& list, const std::string& path, int64_t vocab_size,
                     std::vector<int32_t>& out, JsonErrors& errors);

}  // namespace lk
