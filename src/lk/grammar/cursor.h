// SPDX-License-Identifier: Apache-2.0
// A place in the source of a grammar, which what reads a dialect of it derives from. No step leads past the end: there,
// peek() and next() are '\0' and stay.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "lk/base/status.h"
#include "lk/base/utf8.h"
#include "lk/grammar/code_points.h"
#include "lk/grammar/regex_grammar.h"

namespace lk::grammar {

class Cursor {
 protected:
  explicit Cursor(std::string_view text) : text_(text) {}  // valid UTF-8

  size_t at() const { return at_; }
  void back_to(size_t earlier) { at_ = std::min(at_, earlier); }
  bool more() const { return at_ < text_.size(); }
  std::string_view rest() const { return text_.substr(at_); }
  char peek(size_t ahead = 0) const { return ahead < text_.size() - at_ ? text_[at_ + ahead] : '\0'; }
  void skip(size_t bytes = 1) { at_ += std::min(bytes, text_.size() - at_); }
  char next() {
    const char c = peek();
    skip();
    return c;
  }
  bool take(std::string_view text) {
    if (!rest().starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  // The code point at hand. Requires: more(), at the start of a character.
  uint32_t code_point() {
    const uint32_t code = utf8::decode(text_, at_);
    skip(utf8::char_length(text_[at_]));
    return code;
  }
  // The code point spelled by exactly `count` hexadecimal digits.
  Result<uint32_t> hex(int count) {
    uint32_t code = 0;
    for (int k = 0; k < count; ++k) {
      const int digit = hex_digit(peek());
      if (digit < 0) return invalid_argument("an escape with fewer than {} hexadecimal digits", count);
      code = code << 4 | static_cast<uint32_t>(digit);
      skip();
    }
    return checked(code);
  }
  static Result<uint32_t> checked(uint32_t code) {
    if (code > CodePoints::kMax || (code >= 0xD800 && code <= 0xDFFF))
      return invalid_argument("an escape that is no Unicode character");
    return code;
  }
  static int hex_digit(char c) {  // -1 if it is none
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  }
  int64_t line() const { return 1 + std::ranges::count(text_.substr(0, at_), '\n'); }
  // "{m}", "{m,}" or "{m,n}"; nothing is taken when it is not of this form.
  std::optional<Bounds> bounds() { return parse_bounds(text_, at_); }
  // What was read since `begin`.
  std::string_view since(size_t begin) const { return text_.substr(begin, at_ - begin); }

 private:
  const std::string_view text_;
  size_t at_ = 0;
};

}  // namespace lk::grammar
