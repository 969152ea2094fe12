// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/lexer.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "lk/base/utf8.h"
#include "lk/text/jinja/text.h"
#include "lk/text/jinja/value.h"

namespace lk::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// \r\n and \r become \n; one trailing newline goes (keep_trailing_newline=False).
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t pos = 0; pos < source.size(); ++pos) {
    if (source[pos] == '\r') {
      out += '\n';
      if (pos + 1 < source.size() && source[pos + 1] == '\n') ++pos;
    } else {
      out += source[pos];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)), text_(source_) {}

  std::vector<Token> run() {
    while (pos_ < text_.size()) lex_root();
    emit(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(std::string message) const {
    throw TemplateError{StatusCode::kInvalidArgument, std::move(message), line_};
  }
  bool at(std::string_view what) const { return text_.substr(pos_, what.size()) == what; }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(text_.begin() + pos_, text_.begin() + pos_ + count, '\n'));
    pos_ += count;
    line_starting_ = pos_ > 0 && text_[pos_ - 1] == '\n';
  }
  void skip_space() {
    while (pos_ < text_.size()) {
      size_t next = pos_;
      if (!is_space(next_code_point(text_, next))) return;
      advance(next - pos_);
    }
  }
  void emit(TokenKind kind, std::string text = {}) {
    Token token;
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
  }

  // Text up to a tag, stripped as the sign of the tag and lstrip_blocks say.
  void emit_text(size_t end, char sign, bool lstrip) {
    std::string_view text = text_.substr(pos_, end - pos_);
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && lstrip) {
      const size_t line_begin = text.rfind('\n') + 1;  // npos + 1 == 0
      if ((line_begin > 0 || line_starting_) && strip(text.substr(line_begin), true, false).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) emit(TokenKind::kText, std::string(text));
    advance(end - pos_);
  }

  // If "{% raw %}" or "{% endraw %}" starts at `at`: the byte after "raw"; else npos. Sets the
  // sign.
  size_t match_raw(size_t at, std::string_view word, char& sign) const {
    size_t pos = at + 2;
    sign = 0;
    if (pos < text_.size() && (text_[pos] == '-' || text_[pos] == '+')) sign = text_[pos++];
    const auto skip = [&] {
      while (pos < text_.size()) {
        size_t next = pos;
        if (!is_space(next_code_point(text_, next))) break;
        pos = next;
      }
    };
    skip();
    if (text_.substr(pos, word.size()) != word) return std::string_view::npos;
    pos += word.size();
    skip();
    const std::string_view rest = text_.substr(pos);
    const bool ends =
        rest.starts_with("%}") || rest.starts_with("-%}") || (word == "endraw" && rest.starts_with("+%}"));
    return ends ? pos : std::string_view::npos;
  }

  void lex_root() {
    size_t tag = pos_;
    for (;; ++tag) {
      tag = text_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= text_.size()) {
        emit_text(text_.size(), '+', false);
        return;
      }
      const char kind = text_[tag + 1];
      if (kind == '{' || kind == '%' || kind == '#') break;
    }
    char sign = 0;
    const char kind = text_[tag + 1];
    if (kind == '%') {
      if (const size_t end = match_raw(tag, "raw", sign); end != std::string_view::npos) {
        emit_text(tag, sign, true);
        advance(end - pos_);
        lex_raw();
        return;
      }
    }
    sign = tag + 2 < text_.size() ? text_[tag + 2] : 0;
    if (sign != '-' && sign != '+') sign = 0;
    emit_text(tag, sign, kind != '{');
    const int tag_line = line_;
    advance(sign == 0 ? 2 : 3);
    if (kind == '#') {
      lex_comment(tag_line);
    } else {
      emit(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kPrintBegin);
      lex_tag(kind == '%');
    }
  }

  // The end of a block or comment tag: "+%}", "-%}" and white space, or "%}" and one newline.
  bool end_tag(std::string_view end, bool plus_allowed = true, bool trims = true) {
    if (plus_allowed && at("+") && text_.substr(pos_ + 1, 2) == end) {
      advance(3);
      return true;
    }
    if (at("-") && text_.substr(pos_ + 1, 2) == end) {
      advance(3);
      skip_space();
      return true;
    }
    if (!at(end)) return false;
    advance(2);
    if (trims && at("\n")) advance(1);
    return true;
  }

  void lex_comment(int tag_line) {
    while (pos_ < text_.size()) {
      if (end_tag("#}")) return;
      advance(1);
    }
    line_ = tag_line;
    error("this comment has no end; close it with #}");
  }

  void lex_raw() {
    end_tag("%}", false, false);
    const int raw_line = line_;
    for (size_t tag = pos_; (tag = text_.find("{%", tag)) != std::string_view::npos; ++tag) {
      char sign = 0;
      const size_t end = match_raw(tag, "endraw", sign);
      if (end == std::string_view::npos) continue;
      emit_text(tag, sign, true);
      advance(end - pos_);
      end_tag("%}");
      return;
    }
    line_ = raw_line;
    error("this raw block has no end; close it with {% endraw %}");
  }

  void lex_tag(bool block) {
    const int tag_line = line_;
    std::string closers;  // of the open brackets: a tag does not end inside them
    while (true) {
      if (pos_ >= text_.size()) {
        line_ = tag_line;
        error(block ? "this tag has no end; close it with %}" : "this tag has no end; close it with }}");
      }
      const int end_line = line_;
      if (closers.empty() && end_tag(block ? "%}" : "}}", block, block)) {
        emit(block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd);
        tokens_.back().line = end_line;
        return;
      }
      size_t next = pos_;
      const char32_t c = next_code_point(text_, next);
      if (is_space(c)) {
        skip_space();
      } else if (is_digit(text_[pos_])) {
        lex_number();
      } else if (c == '_' ||
                 (c < 0x80 ? std::isalpha(static_cast<int>(c)) != 0 : u_isIDStart(static_cast<UChar32>(c)) != 0)) {
        lex_name();
      } else if (c == '\'' || c == '"') {
        lex_string(text_[pos_]);
      } else {
        lex_operator(closers);
      }
    }
  }

  void lex_name() {
    size_t end = pos_;
    while (end < text_.size()) {
      size_t next = end;
      const char32_t c = next_code_point(text_, next);
      const bool part =
          c < 0x80 ? c == '_' || std::isalnum(static_cast<int>(c)) != 0 : u_isIDPart(static_cast<UChar32>(c)) != 0;
      if (!part) break;
      end = next;
    }
    emit(TokenKind::kName, std::string(text_.substr(pos_, end - pos_)));
    advance(end - pos_);
  }

  // Digits with single underscores between them; the end of the run from `begin`, or `begin`.
  size_t digits_end(size_t begin) const {
    size_t end = begin;
    while (end < text_.size() && (is_digit(text_[end]) || (text_[end] == '_' && end > begin && text_[end - 1] != '_' &&
                                                           end + 1 < text_.size() && is_digit(text_[end + 1])))) {
      ++end;
    }
    return end;
  }

  void lex_number() {
    const bool after_dot = pos_ > 0 && text_[pos_ - 1] == '.';  // x.0.1 is two subscripts
    size_t end = digits_end(pos_);
    size_t float_end = end;
    if (!after_dot) {
      if (float_end + 1 < text_.size() && text_[float_end] == '.' && is_digit(text_[float_end + 1])) {
        float_end = digits_end(float_end + 1);
      }
      if (float_end < text_.size() && (text_[float_end] == 'e' || text_[float_end] == 'E')) {
        size_t exponent = float_end + 1;
        if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
        if (exponent < text_.size() && is_digit(text_[exponent])) float_end = digits_end(exponent);
      }
    }
    std::string digits(text_.substr(pos_, (float_end > end ? float_end : end) - pos_));
    Token token;
    token.line = line_;
    if (float_end > end) {
      std::erase(digits, '_');
      token.kind = TokenKind::kFloat;
      const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), token.number);
      // Out of range is infinity or zero, as strtod gives it.
      if (result.ec == std::errc::result_out_of_range) token.number = std::strtod(digits.c_str(), nullptr);
      end = float_end;
    } else {
      end = lex_integer(end, token);
    }
    tokens_.push_back(std::move(token));
    advance(end - pos_);
  }

  size_t lex_integer(size_t decimal_end, Token& token) {
    token.kind = TokenKind::kInteger;
    int base = 10;
    size_t begin = pos_;
    size_t end = decimal_end;
    if (text_[pos_] == '0' && pos_ + 1 < text_.size()) {
      const char prefix = static_cast<char>(text_[pos_ + 1] | 0x20);
      const int prefix_base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 0;
      const auto is_base_digit = [&](size_t at) {
        if (at >= text_.size()) return false;
        const char c = static_cast<char>(text_[at] | 0x20);
        const int digit = is_digit(text_[at]) ? text_[at] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
        return digit < prefix_base;
      };
      size_t scan = pos_ + 2;
      while (is_base_digit(scan) || (scan < text_.size() && text_[scan] == '_' && is_base_digit(scan + 1))) ++scan;
      if (prefix_base != 0 && scan > pos_ + 2) {
        base = prefix_base;
        begin = pos_ + 2;
        end = scan;
      } else {
        // "007" is the token 00 and then 7, which the parser refuses.
        end = pos_;
        while (end < decimal_end && (text_[end] == '0' || text_[end] == '_')) ++end;
        if (text_[end - 1] == '_') --end;
      }
    }
    std::string digits(text_.substr(begin, end - begin));
    std::erase(digits, '_');
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), token.integer, base);
    if (result.ec != std::errc()) error("integer " + digits + " does not fit 64 bits");
    return end;
  }

  void lex_string(char quote) {
    size_t end = pos_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) error("this string has no closing quote");
    emit(TokenKind::kString, unescape(text_.substr(pos_ + 1, end - pos_ - 1)));
    advance(end + 1 - pos_);
  }

  // Python's unicode-escape codec.
  std::string unescape(std::string_view raw) const {
    std::string out;
    for (size_t pos = 0; pos < raw.size();) {
      if (raw[pos] != '\\') {
        out += raw[pos++];
        continue;
      }
      const char c = raw[++pos];  // a lone backslash cannot end the string: it would escape the quote
      ++pos;
      static constexpr std::string_view kNames = "\\'\"abfnrtv";
      static constexpr std::string_view kChars = "\\'\"\a\b\f\n\r\t\v";
      if (c == '\n') continue;
      if (const size_t at = kNames.find(c); at != std::string_view::npos) {
        out += kChars[at];
      } else if (c >= '0' && c <= '7') {
        char32_t code = static_cast<char32_t>(c - '0');
        for (int k = 0; k < 2 && pos < raw.size() && raw[pos] >= '0' && raw[pos] <= '7'; ++k) {
          code = code * 8 + static_cast<char32_t>(raw[pos++] - '0');
        }
        utf8::append(out, code);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t width = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        uint32_t code = 0;
        const char* begin = raw.data() + pos;
        const char* end = begin + std::min(width, raw.size() - pos);
        const auto result = std::from_chars(begin, end, code, 16);
        if (result.ptr != begin + width) error(std::string("truncated \\") + c + " escape in a string");
        if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
          error("a string escape names no Unicode character (surrogates are not supported)");
        }
        utf8::append(out, code);
        pos += width;
      } else if (c == 'N') {
        error("\\N{...} escapes are not supported; write the character itself");
      } else if ((c & 0x80) != 0) {
        // jinja2 escapes non-ASCII first, so the backslash meets another one.
        size_t next = pos - 1;
        const auto code = static_cast<uint32_t>(next_code_point(raw, next));
        out += code < 0x100     ? fmt::format("\\x{:02x}", code)
               : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                                : fmt::format("\\U{:08x}", code);
        pos = next;
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void lex_operator(std::string& closers) {
    static constexpr std::array<std::string_view, 6> kPairs = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kSingles = "+-/*%~[](){}><=.:|,;";
    const auto* pair = std::find(kPairs.begin(), kPairs.end(), text_.substr(pos_, 2));
    const char c = text_[pos_];
    if (pair == kPairs.end() && kSingles.find(c) == std::string_view::npos) {
      size_t next = pos_;
      next_code_point(text_, next);
      error("unexpected character '" + std::string(text_.substr(pos_, next - pos_)) + "'");
    }
    if (pair == kPairs.end()) {
      if (c == '(') closers += ')';
      if (c == '[') closers += ']';
      if (c == '{') closers += '}';
      if (c == ')' || c == ']' || c == '}') {
        if (closers.empty() || closers.back() != c) error(std::string("unexpected '") + c + "'");
        closers.pop_back();
      }
    }
    const size_t length = pair == kPairs.end() ? 1 : 2;
    emit(TokenKind::kOperator, std::string(text_.substr(pos_, length)));
    advance(length);
  }

  std::string source_;
  std::string_view text_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source) { return Lexer(source).run(); }

}  // namespace lk::jinja
