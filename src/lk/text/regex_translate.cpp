// SPDX-License-Identifier: Apache-2.0
// Oniguruma (Ruby syntax) to PCRE2. Source: doc/RE of Oniguruma 6.9, pcre2pattern(3).
#include "lk/base/ascii.h"
#include "lk/base/utf8.h"
#include "lk/text/regex.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

// A set of characters as PCRE2 text. `body` goes between brackets; `others` are patterns of one
// character each, for what a bracket cannot say (the complement of a set inside a positive set).
struct CharSet {
  std::string body;
  std::vector<std::string> others;

  std::string pattern(bool negated) const {
    if (others.empty()) {
      if (body.empty()) return negated ? "(?s:.)" : "(?!)";
      return fmt::format("[{}{}]", negated ? "^" : "", body);
    }
    std::string any = body.empty() ? "" : fmt::format("[{}]", body);
    for (const std::string& other : others) any += (any.empty() ? "" : "|") + other;
    return negated ? fmt::format("(?:(?!{})(?s:.))", any) : fmt::format("(?:{})", any);
  }
};

std::string hex(uint32_t code_point) { return fmt::format("\\x{{{:x}}}", code_point); }

std::string ranges_body(std::span<const unicode::CodePointRange> ranges) {
  std::string body;
  for (const auto& range : ranges) {
    if (range.first > 0x10FFFF) continue;  // the empty-set marker of the tables
    body += hex(range.first);
    if (range.last != range.first) body += "-" + hex(range.last);
  }
  return body;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    LK_RETURN_IF_ERROR(sequence(0));
    if (pos_ < pattern_.size()) return refuse("an unmatched )");
    return std::move(out_);
  }

 private:
  static constexpr int kMaxDepth = 100;
  static constexpr size_t kMaxBytes = 1 << 20;  // sets written out as ranges are long

  bool at_end() const { return pos_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const { return pos_ + ahead < pattern_.size() ? pattern_[pos_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (!pattern_.substr(pos_).starts_with(text)) return false;
    pos_ += text.size();
    return true;
  }
  uint32_t take_char() {
    const uint32_t code_point = utf8::decode(pattern_, pos_);
    pos_ += utf8::char_length(pattern_[pos_]);
    return code_point;
  }
  Status refuse(std::string_view what) const {
    return unsupported("the regular expression uses {} (byte {}), which is not supported", what, pos_);
  }

  // One group's inside, up to its ')' or the end of the pattern.
  Status sequence(int depth) {
    if (depth > kMaxDepth) return refuse("more than 100 nested groups");
    int options_open = 0;  // (?i) without ':' reaches to the end of the group, alternatives included (Ruby)
    bool can_repeat = false;
    while (!at_end() && peek() != ')') {
      if (out_.size() > kMaxBytes) return refuse("too many sets");
      const char c = peek();
      if (c == '*' || c == '+' || c == '?' || (c == '{' && is_interval())) {
        if (!can_repeat) return refuse("a quantifier with nothing to repeat");
        LK_RETURN_IF_ERROR(quantifier());
        can_repeat = false;
        continue;
      }
      can_repeat = true;
      if (c == '(') {
        ++pos_;
        bool option_only = false;
        LK_RETURN_IF_ERROR(group(depth, option_only));
        if (option_only) {
          ++options_open;
          can_repeat = false;
        }
      } else if (c == '[') {
        ++pos_;
        bool negated = false;
        LK_ASSIGN_OR_RETURN(const CharSet set, char_class(depth, negated));
        out_ += set.pattern(negated);
      } else if (c == '\\') {
        ++pos_;
        LK_RETURN_IF_ERROR(escape());
      } else if (c == '.') {
        ++pos_;
        out_ += '.';
      } else if (c == '|' || c == '^' || c == '$') {
        ++pos_;
        out_ += c;
        can_repeat = false;
      } else {
        out_ += hex(take_char());
      }
    }
    out_.append(static_cast<size_t>(options_open), ')');
    return {};
  }

  Status group(int depth, bool& option_only) {
    if (peek() == '*') return refuse("(*");
    if (!take("?")) {
      out_ += "(?:";  // nothing refers back to a group, so none captures
    } else if (take(":")) {
      out_ += "(?:";
    } else if (take("=")) {
      out_ += "(?=";
    } else if (take("!")) {
      out_ += "(?!";
    } else if (take(">")) {
      out_ += "(?>";
    } else if (take("<=")) {
      out_ += "(?<=";
    } else if (take("<!")) {
      out_ += "(?<!";
    } else if (take("<")) {
      while (!at_end() && peek() != '>') ++pos_;
      if (!take(">")) return refuse("an unfinished group name");
      out_ += "(?:";
    } else {
      LK_ASSIGN_OR_RETURN(const std::string options, option_letters());
      out_ += "(?" + options + ":";
      if (take(")")) {
        option_only = true;
        return {};
      }
      if (!take(":")) return refuse("an unknown group (?");
    }
    LK_RETURN_IF_ERROR(sequence(depth + 1));
    if (!take(")")) return refuse("an unclosed group");
    out_ += ')';
    return {};
  }

  // Ruby's m is PCRE2's s (dot matches newline).
  Result<std::string> option_letters() {
    std::string options;
    while (peek() == 'i' || peek() == 'm' || peek() == '-') {
      options += peek() == 'm' ? 's' : peek();
      ++pos_;
    }
    if (peek() != ':' && peek() != ')') return refuse(fmt::format("the group option \"(?{}{}\"", options, peek()));
    return options;
  }

  bool is_interval() const {
    size_t at = pos_ + 1;
    const auto digits = [&] {
      const size_t begin = at;
      while (at < pattern_.size() && pattern_[at] >= '0' && pattern_[at] <= '9') ++at;
      return at - begin;
    };
    const size_t low = digits();
    size_t high = 0;
    const bool comma = at < pattern_.size() && pattern_[at] == ',';
    if (comma) {
      ++at;
      high = digits();
    }
    return low + high > 0 && at < pattern_.size() && pattern_[at] == '}';
  }

  Status quantifier() {
    if (peek() == '{') {
      const size_t close = pattern_.find('}', pos_);
      std::string_view inside = pattern_.substr(pos_ + 1, close - pos_ - 1);
      pos_ = close + 1;
      // Ruby reads x{n}? as an optional x{n} and x{n,m}+ as a repeated x{n,m}.
      if (peek() == '+' || (peek() == '?' && inside.find(',') == inside.npos)) {
        return refuse(fmt::format("{{{}}}{}", inside, peek()));
      }
      out_ += fmt::format("{{{}{}}}", inside.starts_with(',') ? "0" : "", inside);
      if (take("?")) out_ += '?';
    } else {
      out_ += peek();
      ++pos_;
      if (peek() == '?' || peek() == '+') {
        out_ += peek();
        ++pos_;
      }
    }
    if (peek() == '*' || peek() == '+' || peek() == '?' || (peek() == '{' && is_interval())) {
      return refuse("a quantifier of a quantifier");
    }
    return {};
  }

  Status escape() {
    if (at_end()) return refuse("a backslash at the end");
    const char c = peek();
    LK_ASSIGN_OR_RETURN(const auto literal, escaped_literal());
    if (literal.has_value()) {
      out_ += hex(*literal);
      return {};
    }
    if (c == 'A' || c == 'z' || c == 'Z') {
      ++pos_;
      out_ += fmt::format("\\{}", c);
      return {};
    }
    if (c == 'b' || c == 'B') {
      ++pos_;
      const std::string word = property_set("word").pattern(false);
      const auto edge = [&](char behind, char ahead) {
        return fmt::format("(?<{}{})(?{}{})", behind, word, ahead, word);
      };
      out_ += c == 'b' ? fmt::format("(?:{}|{})", edge('=', '!'), edge('!', '='))
                       : fmt::format("(?:{}|{})", edge('=', '='), edge('!', '!'));
      return {};
    }
    bool negated = false;
    LK_ASSIGN_OR_RETURN(const CharSet set, escaped_set(negated));
    out_ += set.pattern(negated);
    return {};
  }

  // \n, \x{..}, \., ...: the character; nullopt if the escape is no single character (nothing is
  // consumed then).
  Result<std::optional<uint32_t>> escaped_literal() {
    using Literal = std::optional<uint32_t>;
    const char c = peek();
    if (!is_alnum(c)) return Literal(take_char());
    static constexpr std::pair<char, uint32_t> kControls[] = {{'n', 10}, {'r', 13}, {'t', 9}, {'f', 12},
                                                              {'v', 11}, {'a', 7},  {'e', 27}};
    for (const auto& [name, code_point] : kControls) {
      if (c == name) {
        ++pos_;
        return Literal(code_point);
      }
    }
    if (c != 'x' && c != 'u') return Literal();
    ++pos_;
    const bool braces = c == 'x' && take("{");
    const size_t max_digits = braces ? 8 : c == 'x' ? 2 : 4;
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < max_digits; ++digits, ++pos_) {
      const char d = peek();
      const int nibble = d >= '0' && d <= '9'   ? d - '0'
                         : d >= 'a' && d <= 'f' ? d - 'a' + 10
                         : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                                : -1;
      if (nibble < 0) break;
      value = value << 4 | static_cast<uint32_t>(nibble);
    }
    if (digits == 0 || (c == 'u' && digits != 4) || (braces && !take("}"))) return refuse("a malformed \\x or \\u");
    // A bare \x80..\xff is a byte to Oniguruma, not a character.
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000) || (c == 'x' && !braces && value >= 0x80)) {
      return refuse("a \\x or \\u that is no character");
    }
    return Literal(value);
  }

  static CharSet property_set(std::string_view name) {
    const unicode::RegexProperty* property = unicode::find_property(name);
    LK_CHECK(property != nullptr, "{}", name);
    return {std::string(property->base) + ranges_body(property->ranges), {}};
  }

  // \s, \P{L}, ...: consumes the escape after its backslash.
  Result<CharSet> escaped_set(bool& negated) {
    const char c = peek();
    ++pos_;
    negated = c >= 'A' && c <= 'Z';
    switch (c) {
      case 's':
      case 'S':
        return CharSet{ranges_body(unicode::space_ranges()), {}};
      case 'd':
      case 'D':
        return property_set("Nd");
      case 'w':
      case 'W':
        return property_set("word");
      case 'h':
      case 'H':
        return CharSet{"0-9a-fA-F", {}};
      case 'p':
      case 'P': {
        if (!take("{")) break;
        if (take("^")) negated = !negated;
        const size_t close = pattern_.find('}', pos_);
        if (close == pattern_.npos) return refuse("an unfinished \\p{");
        const std::string_view name = pattern_.substr(pos_, close - pos_);
        const unicode::RegexProperty* property = unicode::find_property(name);
        if (property == nullptr) return refuse(fmt::format("\\p{{{}}}", name));
        pos_ = close + 1;
        return CharSet{std::string(property->base) + ranges_body(property->ranges), {}};
      }
      default:
        break;
    }
    return refuse(fmt::format("\\{}", c));
  }

  // After '[': to the matching ']'. Nested sets are unions, && is an intersection.
  Result<CharSet> char_class(int depth, bool& negated) {
    if (depth > kMaxDepth) return refuse("more than 100 nested sets");
    negated = take("^");
    CharSet set;
    std::string intersection;  // (?=left) of every && so far
    bool first = true;
    while (true) {
      if (at_end()) return refuse("an unclosed [");
      if (set.body.size() + intersection.size() > kMaxBytes) return refuse("too many sets");
      if (peek() == ']' && !first) break;
      first = false;
      if (take("&&")) {
        intersection += fmt::format("(?={})", set.pattern(false));
        set = {};
        continue;
      }
      if (peek() == '[') {
        if (peek(1) == ':') return refuse("a [:class:]");
        ++pos_;
        bool inner_negated = false;
        LK_ASSIGN_OR_RETURN(const CharSet inner, char_class(depth + 1, inner_negated));
        add(set, inner, inner_negated);
        continue;
      }
      std::optional<uint32_t> low;
      LK_RETURN_IF_ERROR(class_atom(set, low));
      if (!low.has_value()) continue;
      if (peek() != '-' || peek(1) == ']' || peek(1) == '[' || pos_ + 1 >= pattern_.size()) {
        set.body += hex(*low);
        continue;
      }
      ++pos_;  // the '-' of a range
      CharSet after;
      std::optional<uint32_t> high;
      LK_RETURN_IF_ERROR(class_atom(after, high));
      if (!high.has_value()) return refuse("a range that ends in a set");
      if (*high < *low) return refuse("an empty range in a set");
      set.body += hex(*low) + "-" + hex(*high);
    }
    ++pos_;
    if (!intersection.empty()) set = {"", {fmt::format("(?:{}{})", intersection, set.pattern(false))}};
    return set;
  }

  static void add(CharSet& set, const CharSet& item, bool negated) {
    if (negated) {
      set.others.push_back(item.pattern(true));
      return;
    }
    set.body += item.body;
    set.others.insert(set.others.end(), item.others.begin(), item.others.end());
  }

  // One character (in `literal`) or one escaped set (added to `set`).
  Status class_atom(CharSet& set, std::optional<uint32_t>& literal) {
    if (!take("\\")) {
      literal = take_char();
      return {};
    }
    if (at_end()) return refuse("a backslash at the end");
    if (take("b")) {
      literal = 8;
      return {};
    }
    LK_ASSIGN_OR_RETURN(literal, escaped_literal());
    if (literal.has_value()) return {};
    bool negated = false;
    LK_ASSIGN_OR_RETURN(const CharSet item, escaped_set(negated));
    add(set, item, negated);
    return {};
  }

  std::string_view pattern_;
  size_t pos_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> translate_regex(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace lk
