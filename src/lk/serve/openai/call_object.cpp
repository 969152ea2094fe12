// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/call_object.h"

#include <algorithm>

#include <boost/json.hpp>

namespace lk::openai {
namespace {

// The text of a raw JSON string.
std::optional<std::string> unquote(const std::string& raw) {
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(raw, error);
  if (error || !value.is_string()) return std::nullopt;
  return std::string(value.get_string());
}

}  // namespace

CallObject::Step CallObject::feed(char c, std::string& arguments) {
  if (state_ == State::kInKey) {
    key_ += c;
    return scanner_.feed(c) == JsonScanner::Step::kDone && !end_key() ? Step::kBad : Step::kMore;
  }
  if (state_ == State::kInValue) {
    const JsonScanner::Step step = scanner_.feed(c);
    if (step == JsonScanner::Step::kBad) return Step::kBad;
    if (step != JsonScanner::Step::kDoneBefore) (passing_ ? arguments : value_) += c;
    if (step == JsonScanner::Step::kMore) return Step::kMore;
    if (!end_value(arguments)) return Step::kBad;
    if (step == JsonScanner::Step::kDone) return Step::kMore;
  }
  if (is_json_space(c)) return Step::kMore;
  switch (state_) {
    case State::kOpen:
      if (c != '{') return Step::kBad;
      state_ = State::kFirstKey;
      return Step::kMore;
    case State::kFirstKey:
    case State::kKey:
      if (c != '"') return Step::kBad;
      key_ = '"';
      scanner_ = JsonScanner();
      scanner_.feed(c);
      state_ = State::kInKey;
      return Step::kMore;
    case State::kColon:
      if (c != ':') return Step::kBad;
      state_ = State::kValue;
      return Step::kMore;
    case State::kValue:
      return begin_value(c, arguments) ? Step::kMore : Step::kBad;
    case State::kAfter:
      if (c == ',') return state_ = State::kKey, Step::kMore;
      if (c != '}' || !name_) return Step::kBad;
      if (begun_) return Step::kDone;
      arguments_done_ = true;
      return begin(arguments) ? Step::kDone : Step::kBad;
    default:
      return Step::kBad;
  }
}

bool CallObject::end_key() {
  const auto key = unquote(key_);
  static constexpr std::string_view kKnown[] = {"name", "arguments", "parameters", "type", "id"};
  // Another key first: not a call but an answer in JSON, which need not wait for its end.
  if (!key || (!begun_ && std::find(std::begin(kKnown), std::end(kKnown), *key) == std::end(kKnown))) return false;
  key_ = *key;
  state_ = State::kColon;
  return true;
}

bool CallObject::begin_value(char c, std::string& arguments) {
  scanner_ = JsonScanner();
  if (scanner_.feed(c) == JsonScanner::Step::kBad) return false;
  const bool is_arguments = key_ == "arguments" || key_ == "parameters";
  if ((is_arguments && (arguments_ || arguments_done_)) || (key_ == "name" && name_)) return false;
  state_ = State::kInValue;
  value_.clear();
  passing_ = is_arguments && c == '{' && name_.has_value();
  if (passing_ && !begin(arguments)) return false;
  (passing_ ? arguments : value_) += c;
  return true;
}

bool CallObject::end_value(std::string& arguments) {
  state_ = State::kAfter;
  if (passing_) {
    passing_ = false;
    return arguments_done_ = true;
  }
  if (key_ == "name") {
    name_ = unquote(value_);
    if (!name_ || name_->empty() || name_->size() > 256) return false;
    if (names_ != nullptr && std::find(names_->begin(), names_->end(), *name_) == names_->end()) return false;
  } else if (key_ == "arguments" || key_ == "parameters") {
    if (value_[0] == '"')
      arguments_ = unquote(value_);  // JSON in a string
    else if (value_[0] == '{')
      arguments_ = value_;
    else if (value_ == "null")
      arguments_ = "{}";
    if (!arguments_) return false;
    arguments_done_ = true;
  } else {
    return true;
  }
  return !name_ || !arguments_ || begun_ || begin(arguments);
}

bool CallObject::begin(std::string& arguments) {
  begun_ = true;
  if (!passing_) arguments += arguments_.value_or("{}");
  return true;
}

}  // namespace lk::openai
