// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_reader.h"

#include <cmath>
#include <string>
#include <vector>

#include <boost/json.hpp>
#include <boost/json/basic_parser_impl.hpp>

#include "lk/base/utf8.h"

namespace lk {
namespace {

namespace json = boost::json;

// Receives the parser's events and builds the value. Boost's own builder keeps the last of equal keys silently.
class Builder {
 public:
  static constexpr size_t max_object_size = static_cast<size_t>(-1);
  static constexpr size_t max_array_size = static_cast<size_t>(-1);
  static constexpr size_t max_key_size = static_cast<size_t>(-1);
  static constexpr size_t max_string_size = static_cast<size_t>(-1);

  explicit Builder(json::storage_ptr storage) : root_(storage), storage_(std::move(storage)) {}

  json::value take() { return std::move(root_); }
  const std::string& reason() const { return reason_; }  // of a failure that the parser does not know

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) { return open(json::object(storage_)); }
  bool on_object_end(size_t, json::error_code& ec) { return close(ec); }
  bool on_array_begin(json::error_code&) { return open(json::array(storage_)); }
  bool on_array_end(size_t, json::error_code& ec) { return close(ec); }
  bool on_key_part(json::string_view part, size_t, json::error_code&) { return partial_.append(part), true; }
  bool on_key(json::string_view part, size_t, json::error_code&) {
    partial_.append(part);
    open_.back().key = std::move(partial_);
    partial_.clear();
    return true;
  }
  bool on_string_part(json::string_view part, size_t, json::error_code&) { return partial_.append(part), true; }
  bool on_string(json::string_view part, size_t, json::error_code& ec) {
    if (partial_.empty()) return add(json::value(part, storage_), ec);
    partial_.append(part);
    json::value text(partial_, storage_);
    partial_.clear();
    return add(std::move(text), ec);
  }
  bool on_number_part(json::string_view part, json::error_code&) { return number_.append(part), true; }
  bool on_int64(int64_t number, json::string_view, json::error_code& ec) {
    return number_.clear(), add(json::value(number, storage_), ec);
  }
  bool on_uint64(uint64_t number, json::string_view, json::error_code& ec) {
    return number_.clear(), add(json::value(number, storage_), ec);
  }
  bool on_double(double number, json::string_view text, json::error_code& ec) {
    number_.append(text);
    const bool whole = number_.find_first_of(".eE") == std::string::npos;
    number_.clear();
    if (!std::isfinite(number)) return fail("a number is out of the range of a double", ec);
    if (whole) return fail("an integer is out of the range of 64 bits", ec);
    return add(json::value(number, storage_), ec);
  }
  bool on_bool(bool flag, json::error_code& ec) { return add(json::value(flag, storage_), ec); }
  bool on_null(json::error_code& ec) { return add(json::value(nullptr, storage_), ec); }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  struct Open {
    json::value container;
    std::string key;  // of the member to come
  };

  bool open(json::value container) { return open_.push_back({std::move(container), {}}), true; }
  bool close(json::error_code& ec) {
    json::value done = std::move(open_.back().container);
    open_.pop_back();
    return add(std::move(done), ec);
  }
  bool add(json::value value, json::error_code& ec) {
    if (++num_values_ > kMaxJsonValues) return fail(fmt::format("more than {} values", kMaxJsonValues), ec);
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (auto* array = open_.back().container.if_array()) {
      array->push_back(std::move(value));
    } else {
      const std::string& key = open_.back().key;
      if (!open_.back().container.get_object().emplace(key, std::move(value)).second)
        return fail(fmt::format("the key \"{}\" is given twice", key.substr(0, 64)), ec);
    }
    return true;
  }
  bool fail(std::string reason, json::error_code& ec) {
    reason_ = std::move(reason);
    ec = json::error::syntax;
    return false;
  }

  json::value root_;
  json::storage_ptr storage_;
  std::vector<Open> open_;
  std::string partial_, number_, reason_;
  int64_t num_values_ = 0;
};

const char* describe(const json::error_code& error) {
  if (error == json::error::too_deep) return "nested more than 64 levels deep";
  if (error == json::error::incomplete) return "it ends too early";
  if (error == json::error::exponent_overflow) return "a number is out of the range of a double";
  if (error == json::error::illegal_leading_surrogate || error == json::error::illegal_trailing_surrogate ||
      error == json::error::expected_utf16_escape)
    return "half a surrogate pair";
  return "syntax error";
}

}  // namespace

Result<json::value> read_json(std::string_view body, json::storage_ptr storage, int max_depth) {
  if (const auto offset = utf8::find_invalid(body)) return invalid_argument("invalid UTF-8 at byte {}", *offset);
  json::parse_options options;
  options.max_depth = static_cast<size_t>(max_depth);
  json::basic_parser<Builder> parser(options, std::move(storage));
  json::error_code error;
  const size_t used = parser.write_some(false, body.data(), body.size(), error);
  if (!parser.handler().reason().empty()) return invalid_argument("{}, at byte {}", parser.handler().reason(), used);
  if (error) return invalid_argument("{} at byte {}", describe(error), used);
  if (used < body.size()) return invalid_argument("something follows the JSON value at byte {}", used);
  return parser.handler().take();
}

}  // namespace lk
