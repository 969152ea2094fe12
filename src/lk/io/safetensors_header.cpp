// SPDX-License-Identifier: Apache-2.0
#include "lk/io/safetensors_header.h"

#include <boost/json/basic_parser_impl.hpp>
#include <unordered_set>

namespace lk {
namespace {
namespace json = boost::json;
using json::error_code;
using json::string_view;

// Boost.JSON's event handler. Depth 1 holds tensor names, depth 2 their fields, depth 3 the arrays.
class HeaderHandler {
 public:
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = 1 << 16;
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);

  SafetensorsHeader header;
  std::string problem;

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }

  bool on_object_begin(error_code& error) {
    ++depth_;
    if (depth_ == 1) return true;
    if (depth_ != 2) return stop(error, "nested objects");
    if (in_metadata_) return true;
    header.entries.push_back({name_, "", {}, 0, 0});
    seen_ = 0;
    return true;
  }
  bool on_object_end(std::size_t, error_code& error) {
    if (depth_-- != 2) return true;
    if (!in_metadata_ && seen_ != (kDtype | kShape | kOffsets)) {
      return stop(error, fmt::format("tensor '{}' lacks one of dtype, shape, data_offsets", name_));
    }
    in_metadata_ = false;
    return true;
  }
  bool on_array_begin(error_code& error) {
    if (depth_ != 2 || in_metadata_ || in_array_ || (field_ != kShape && field_ != kOffsets)) {
      return stop(error, depth_ == 0 ? "the header is not an object" : "an unexpected list");
    }
    in_array_ = true;
    numbers_.clear();
    return true;
  }
  bool on_array_end(std::size_t, error_code& error) {
    in_array_ = false;
    SafetensorsHeaderEntry& entry = header.entries.back();
    if (field_ == kShape) {
      entry.shape = numbers_;
    } else {
      if (numbers_.size() != 2) {
        return stop(error, fmt::format("data_offsets of tensor '{}' are not two numbers", name_));
      }
      entry.begin = numbers_[0];
      entry.end = numbers_[1];
    }
    seen_ |= field_;
    return true;
  }

  bool on_key_part(string_view part, std::size_t, error_code&) {
    text_.append(part.data(), part.size());
    return true;
  }
  bool on_key(string_view part, std::size_t, error_code& error) {
    text_.append(part.data(), part.size());
    std::string key = std::move(text_);
    text_.clear();
    if (depth_ == 1) {
      if (!names_.insert(key).second) return stop(error, fmt::format("duplicate name '{}'", key));
      in_metadata_ = key == "__metadata__";
      name_ = std::move(key);
      return true;
    }
    if (in_metadata_) {
      metadata_key_ = std::move(key);
      return true;
    }
    field_ = key == "dtype" ? kDtype : key == "shape" ? kShape : key == "data_offsets" ? kOffsets : kNone;
    if (field_ == kNone) return stop(error, fmt::format("tensor '{}' has an unknown field '{}'", name_, key));
    if ((seen_ & field_) != 0) return stop(error, fmt::format("tensor '{}' has '{}' twice", name_, key));
    return true;
  }
  bool on_string_part(string_view part, std::size_t, error_code&) {
    text_.append(part.data(), part.size());
    return true;
  }
  bool on_string(string_view part, std::size_t, error_code& error) {
    text_.append(part.data(), part.size());
    std::string text = std::move(text_);
    text_.clear();
    if (depth_ == 2 && in_metadata_) {
      header.metadata[metadata_key_] = std::move(text);
      return true;
    }
    if (depth_ != 2 || in_array_ || field_ != kDtype) return stop(error, "an unexpected string");
    header.entries.back().dtype = std::move(text);
    seen_ |= kDtype;
    return true;
  }
  bool on_number_part(string_view, error_code&) { return true; }
  bool on_int64(int64_t number, string_view, error_code& error) {
    if (!in_array_) return stop(error, "an unexpected number");
    if (number < 0) return stop(error, fmt::format("tensor '{}' has a negative number", name_));
    // No honest tensor needs more: stops a header that is one endless list.
    if (numbers_.size() >= 64) return stop(error, fmt::format("tensor '{}' has a list of more than 64", name_));
    numbers_.push_back(static_cast<uint64_t>(number));
    return true;
  }
  bool on_uint64(uint64_t, string_view, error_code& error) {
    return stop(error, fmt::format("tensor '{}' has a number beyond 2^63", name_));
  }
  bool on_double(double, string_view, error_code& error) { return stop(error, "a fraction"); }
  bool on_bool(bool, error_code& error) { return stop(error, "an unexpected boolean"); }
  bool on_null(error_code& error) { return stop(error, "an unexpected null"); }
  bool on_comment_part(string_view, error_code&) { return true; }
  bool on_comment(string_view, error_code&) { return true; }

 private:
  enum : unsigned { kNone = 0, kDtype = 1, kShape = 2, kOffsets = 4 };

  bool stop(error_code& error, std::string why) {
    problem = std::move(why);
    error = json::error::incomplete;  // any error stops the parser; `problem` is what is reported
    return false;
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  bool in_array_ = false;
  unsigned field_ = kNone;  // the field of the tensor being read
  unsigned seen_ = 0;       // the fields read so far
  std::string name_, metadata_key_, text_;
  std::vector<uint64_t> numbers_;
  std::unordered_set<std::string> names_;
};

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text) {
  if (text.empty() || text.front() != '{') return data_loss("the header is not a JSON object");
  json::basic_parser<HeaderHandler> parser{json::parse_options{}};
  error_code error;
  const std::size_t used = parser.write_some(false, text.data(), text.size(), error);
  HeaderHandler& handler = parser.handler();
  if (!handler.problem.empty()) return data_loss("bad header: {}", handler.problem);
  if (error) return data_loss("bad header: not valid JSON at byte {}: {}", used, error.message());
  if (text.find_first_not_of(" \n\r\t", used) != std::string_view::npos) {
    return data_loss("bad header: text after the JSON object");
  }
  return std::move(handler.header);
}

}  // namespace lk
