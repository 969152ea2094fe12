// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/json_scanner.h"

#include <cctype>

namespace lk::openai {
namespace {

constexpr size_t kMaxDepth = 64;

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '+' || c == '.'; }

}  // namespace

JsonScanner::Step JsonScanner::open(char c) {
  if (c == '"') return state_ = State::kString, in_key_ = false, Step::kMore;
  if (c == '{' || c == '[') {
    if (open_.size() >= kMaxDepth) return Step::kBad;
    open_ += c;
    state_ = c == '{' ? State::kFirstKey : State::kFirstItem;
    return Step::kMore;
  }
  if (!is_word(c)) return Step::kBad;
  state_ = State::kWord;
  return Step::kMore;
}

JsonScanner::Step JsonScanner::close(char c) {
  if (open_.empty() || (c == '}') != (open_.back() == '{')) return Step::kBad;
  open_.pop_back();
  return after_value();
}

JsonScanner::Step JsonScanner::feed(char c) {
  if (state_ == State::kString) {
    if (c == '\\') state_ = State::kEscape;
    if (c != '"') return Step::kMore;
    if (in_key_) return state_ = State::kColon, Step::kMore;
    return after_value();
  }
  if (state_ == State::kEscape) return state_ = State::kString, Step::kMore;
  if (state_ == State::kWord) {
    if (is_word(c)) return Step::kMore;
    state_ = State::kAfter;
    if (open_.empty()) return Step::kDoneBefore;
  }
  if (is_json_space(c)) return Step::kMore;
  switch (state_) {
    case State::kFirstKey:
    case State::kKey:
      if (c == '"') return state_ = State::kString, in_key_ = true, Step::kMore;
      return c == '}' && state_ == State::kFirstKey ? close(c) : Step::kBad;
    case State::kColon:
      if (c != ':') return Step::kBad;
      state_ = State::kValue;
      return Step::kMore;
    case State::kFirstItem:
      return c == ']' ? close(c) : open(c);
    case State::kValue:
      return open(c);
    case State::kAfter:
      if (c == '}' || c == ']') return close(c);
      if (c != ',' || open_.empty()) return Step::kBad;
      state_ = open_.back() == '{' ? State::kKey : State::kValue;
      return Step::kMore;
    default:
      return Step::kBad;
  }
}

}  // namespace lk::openai
