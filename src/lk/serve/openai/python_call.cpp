// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/python_call.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "lk/serve/openai/json_scanner.h"

namespace lk::openai {
namespace {

constexpr size_t kMaxDepth = 64, kMaxWord = 512;

bool is_letter(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_word(char c) { return is_letter(c) || c == '-' || c == '+' || c == '.'; }

}  // namespace

PythonValue::Step PythonValue::open(char c, std::string& json) {
  if (std::exchange(comma_, false)) json += ", ";  // not before what closes a list
  if (c == '"' || c == '\'') {
    quote_ = c;
    json += '"';
    state_ = State::kString;
    return Step::kMore;
  }
  if (c == '[' || c == '(' || c == '{') {
    if (in_key_ || open_.size() >= kMaxDepth) return Step::kBad;
    open_ += c;
    json += c == '{' ? '{' : '[';
    state_ = c == '{' ? State::kFirstKey : State::kFirst;
    return Step::kMore;
  }
  if (!is_word(c)) return Step::kBad;
  word_ = c;
  state_ = State::kWord;
  return Step::kMore;
}

PythonValue::Step PythonValue::close(char c, std::string& json) {
  const char opened = c == '}' ? '{' : c == ']' ? '[' : '(';
  if (open_.empty() || open_.back() != opened) return Step::kBad;
  open_.pop_back();
  comma_ = false;
  json += c == '}' ? '}' : ']';
  return end_value();
}

// Escapes of Python in a JSON string.
PythonValue::Step PythonValue::escape(char c, std::string& json) {
  state_ = State::kString;
  if (c == 'u' || c == 'x') {
    num_hex_ = c == 'u' ? 4 : 2;
    hex_.clear();
    state_ = State::kHex;
  } else if (c == '\'') {
    json += c;
  } else if (std::string_view("\"\\ntrbf").find(c) != std::string_view::npos) {
    json += '\\';
    json += c;
  } else if (c != '\n') {  // a line that goes on
    json += "\\\\";
    append_escaped(json, c);
  }
  return Step::kMore;
}

PythonValue::Step PythonValue::feed(char c, std::string& json) {
  if (state_ == State::kString) {
    if (c == '\\') return state_ = State::kEscape, Step::kMore;
    if (c != quote_) return append_escaped(json, c), Step::kMore;
    json += '"';
    if (in_key_) return state_ = State::kColon, Step::kMore;
    return end_value();
  }
  if (state_ == State::kEscape) return escape(c, json);
  if (state_ == State::kHex) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return json += hex_, Step::kBad;
    hex_ += c;
    if (hex_.size() < num_hex_) return Step::kMore;
    json += num_hex_ == 4 ? "\\u" : "\\u00";
    json += hex_;
    state_ = State::kString;
    return Step::kMore;
  }
  if (state_ == State::kWord) {
    if (is_word(c)) return word_.size() < kMaxWord ? (word_ += c, Step::kMore) : (json += word_, Step::kBad);
    if (in_key_) {
      json += '"';
      json += word_;
      json += '"';
      state_ = State::kColon;
    } else {
      append_word(json, word_);
      state_ = State::kAfter;
      if (open_.empty()) return Step::kDoneBefore;
    }
  }
  if (is_json_space(c)) return Step::kMore;
  switch (state_) {
    case State::kFirstKey:
    case State::kKey:
      if (c == '}') return close(c, json);
      in_key_ = true;
      return open(c, json);
    case State::kColon:
      if (c != ':') return Step::kBad;
      in_key_ = false;
      json += ": ";
      state_ = State::kValue;
      return Step::kMore;
    case State::kFirst:
      if (c == ']' || c == ')') return close(c, json);
      return open(c, json);
    case State::kValue:
      return comma_ && (c == ']' || c == ')') ? close(c, json) : open(c, json);
    case State::kAfter:
      if (c == '}' || c == ']' || c == ')') return close(c, json);
      if (c != ',' || open_.empty()) return Step::kBad;
      comma_ = true;
      state_ = open_.back() == '{' ? State::kKey : State::kValue;
      return Step::kMore;
    default:
      return Step::kBad;
  }
}

CallBody::Step PythonCall::feed(char c, std::string& arguments) {
  if (state_ == State::kValue) {
    const PythonValue::Step step = value_.feed(c, arguments);
    if (step == PythonValue::Step::kBad) return Step::kBad;
    if (step == PythonValue::Step::kMore) return Step::kMore;
    state_ = State::kAfter;
    if (step == PythonValue::Step::kDone) return Step::kMore;
  }
  if (is_json_space(c) && !(state_ == State::kName && !name_.empty())) {
    if (state_ == State::kKey) state_ = State::kEquals;
    return Step::kMore;
  }
  switch (state_) {
    case State::kName:
      if (is_letter(c) || c == '.' || c == '-')
        return name_.size() < kMaxCallName ? (name_ += c, Step::kMore) : Step::kBad;
      if (c != '(' || name_.empty()) return Step::kBad;
      if (names_ != nullptr && std::ranges::find(*names_, name_) == names_->end()) return Step::kBad;
      begun_ = true;
      state_ = State::kFirstKey;
      return Step::kMore;
    case State::kFirstKey:
    case State::kNextKey:
      if (c == ')') return end(arguments);
      if (!is_letter(c) || std::isdigit(static_cast<unsigned char>(c)) != 0) return Step::kBad;
      key_ = c;
      state_ = State::kKey;
      return Step::kMore;
    case State::kKey:
      if (is_letter(c) && key_.size() < kMaxCallName) return key_ += c, Step::kMore;
      [[fallthrough]];
    case State::kEquals:
      return key(c, arguments);
    case State::kAfter:
      if (c == ')') return end(arguments);
      if (c != ',') return Step::kBad;
      state_ = State::kNextKey;
      return Step::kMore;
    default:
      return Step::kBad;
  }
}

CallBody::Step PythonCall::key(char c, std::string& arguments) {
  if (c != '=') return arguments += key_, Step::kBad;
  arguments += any_ ? ", \"" : "{\"";
  arguments += key_;
  arguments += "\": ";
  any_ = true;
  value_ = PythonValue();
  state_ = State::kValue;
  return Step::kMore;
}

CallBody::Step PythonCall::end(std::string& arguments) {
  arguments += any_ ? "}" : "{}";
  arguments_done_ = true;
  return Step::kDone;
}

}  // namespace lk::openai
