// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/regex_grammar.h"

#include <optional>

#include "lk/base/utf8.h"
#include "lk/grammar/cursor.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

const CodePoints& digits() {
  static const CodePoints set{{'0', '9'}};
  return set;
}
const CodePoints& word() {
  static const CodePoints set{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return set;
}
const CodePoints& space() {
  static const CodePoints set{{'\t', '\r'}, {' ', ' '}};
  return set;
}

class Parser : private Cursor {
 public:
  Parser(Ir& ir, std::string_view pattern, const RegexOptions& options, Budget& budget)
      : Cursor(pattern), ir_(ir), options_(options), budget_(budget) {}

  Result<Expr> run() {
    LK_ASSIGN_OR_RETURN(const Expr expr, alternatives(0));
    if (more()) return error("an unmatched \")\"");
    return expr;
  }

 private:
  template <class... Args>
  Status error(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument("pattern, byte {}: {}", at(), fmt::format(format, std::forward<Args>(args)...));
  }
  Expr spell(const CodePoints& set) { return options_.spell ? options_.spell(set) : ir_.code_points(set); }
  Expr anything() { return ir_.repeat(spell(CodePoints::all()), 0, kUnbounded); }

  Result<Expr> alternatives(int depth) {
    if (depth > options_.max_depth) return error("groups are nested more than {} deep", options_.max_depth);
    std::vector<Expr> parts;
    do {
      LK_ASSIGN_OR_RETURN(const Expr part, sequence(depth));
      parts.push_back(part);
    } while (take("|"));
    return ir_.alt(std::move(parts));
  }

  // Anchors are allowed at the ends of the outermost alternatives, where they say that no other text may stand there.
  Result<Expr> sequence(int depth) {
    std::vector<Expr> parts;
    bool begins = false, ends = false;
    while (depth == 0 && take("^")) begins = true;
    while (more() && peek() != '|' && peek() != ')') {
      if (!budget_.spend(0)) return budget_.status();
      if (peek() == '^') return error("\"^\" is supported at the beginning only");
      if (take("$")) {
        ends = true;
        if (depth == 0 && (!more() || peek() == '|' || peek() == '$')) continue;
        return error("\"$\" is supported at the end only");
      }
      LK_ASSIGN_OR_RETURN(const Expr part, repeated(depth));
      parts.push_back(part);
    }
    if (options_.search && depth == 0) {
      if (!begins) parts.insert(parts.begin(), anything());
      if (!ends) parts.push_back(anything());
    }
    return ir_.seq(std::move(parts));
  }

  Result<Expr> repeated(int depth) {
    LK_ASSIGN_OR_RETURN(Expr part, atom(depth));
    for (int quantifiers = 0; more(); ++quantifiers) {
      Bounds found{};
      if (take("*")) {
        found = {0, kUnbounded};
      } else if (take("+")) {
        found = {1, kUnbounded};
      } else if (take("?")) {
        found = {0, 1};
      } else if (const auto parsed = bounds()) {
        found = *parsed;
      } else {
        const size_t digits = rest().find_first_not_of("0123456789", 2);
        if (rest().starts_with("{,") && digits > 2 && digits != std::string_view::npos && rest()[digits] == '}')
          return error("\"{{,n}}\" is read differently by different readers; write {{0,n}}");
        break;
      }
      if (quantifiers > 0) return error("a quantifier after a quantifier");
      if (found.min > kMaxRepeat || found.max > kMaxRepeat) return error("more than {} repetitions", kMaxRepeat);
      if (found.max != kUnbounded && found.max < found.min)
        return error("a repetition whose maximum is below its minimum");
      part = ir_.repeat(part, static_cast<int>(found.min), static_cast<int>(found.max));
      take("?");  // lazy: the same texts
      if (more() && peek() == '+') return error("possessive quantifiers are not supported");
    }
    return part;
  }

  Result<Expr> atom(int depth) {
    const char c = peek();
    if (c == '(') return group(depth);
    if (c == '[') {
      LK_ASSIGN_OR_RETURN(const CodePoints set, char_class());
      return spell(set);
    }
    if (c == '*' || c == '+' || c == '?') return error("\"{}\" has nothing to repeat", c);
    if (take(".")) {
      static const CodePoints line_end{{'\n', '\n'}};
      static const CodePoints ecma_line_ends{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
      return spell((options_.search ? ecma_line_ends : line_end).inverted());
    }
    LK_ASSIGN_OR_RETURN(const CodePoints set, character(false));
    return spell(set);
  }

  Result<Expr> group(int depth) {
    skip();
    if (take("?")) {
      if (take("P<") || (peek(1) != '=' && peek(1) != '!' && take("<"))) {
        while (more() && peek() != '>') skip();
        if (!take(">")) return error("a group name without \">\"");
      } else if (!take(":")) {
        const char kind = more() ? peek() : ' ';
        if (kind == '=' || kind == '!' || kind == '<') return error("look-around is not supported");
        if (kind == '>') return error("atomic groups are not supported");
        if (kind == '(' || kind == '|') return error("conditional groups are not supported");
        return error("group options \"(?{}\" are not supported", kind);
      }
    }
    LK_ASSIGN_OR_RETURN(const Expr inner, alternatives(depth + 1));
    if (!take(")")) return error("a group is not closed");
    return inner;
  }

  // One character or escape, as the set it stands for.
  Result<CodePoints> character(bool in_class) {
    if (!take("\\")) {
      const uint32_t c = code_point();
      return CodePoints{{c, c}};
    }
    if (!more()) return error("the pattern ends with \"\\\"");
    const size_t escaped = at();
    const char c = next();
    const auto single = [](uint32_t code) { return CodePoints{{code, code}}; };
    switch (c) {
      case 'd':
        return digits();
      case 'D':
        return digits().inverted();
      case 'w':
        return word();
      case 'W':
        return word().inverted();
      case 's':
        return space();
      case 'S':
        return space().inverted();
      case 'n':
        return single('\n');
      case 'r':
        return single('\r');
      case 't':
        return single('\t');
      case 'f':
        return single('\f');
      case 'v':
        return single('\v');
      case '0':
        if (peek() >= '0' && peek() <= '9') return error("octal escapes are not supported");
        return single(0);
      case 'x':
        return single_of(hex(2));
      case 'u':
        return take("{") ? braced_hex() : single_of(hex(4));
      case 'U':
        return single_of(hex(8));
      case 'b':
        if (in_class) return single('\b');
        return error("word boundaries (\\b) are not supported");
      case 'B':
        return error("word boundaries (\\B) are not supported");
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
        return error("the anchor \\{} is not supported; use ^ and $", c);
      case 'p':
      case 'P':
        return error("Unicode properties (\\{}) are not supported", c);
      case 'k':
      case 'g':
        return error("backreferences are not supported");
      default:
        break;
    }
    if (c >= '1' && c <= '9') return error("backreferences are not supported");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return error("the escape \\{} is not supported", c);
    back_to(escaped);
    return single(code_point());
  }

  Result<CodePoints> single_of(const Result<uint32_t>& code) {
    if (!code.ok()) return error("{}", code.status().message());
    return CodePoints{{*code, *code}};
  }
  Result<CodePoints> braced_hex() {
    uint32_t code = 0;
    int count = 0;
    for (; hex_digit(peek()) >= 0 && count < 6; ++count) code = code << 4 | static_cast<uint32_t>(hex_digit(next()));
    if (count == 0 || !take("}")) return error("\\u{{...}} needs 1 to 6 hexadecimal digits");
    return single_of(checked(code));
  }

  Result<CodePoints> char_class() {
    const size_t begin = at();
    skip();
    const bool inverted = take("^");
    CodePoints set;
    bool first = true;
    for (;; first = false) {
      if (!more()) {
        back_to(begin);
        return error("a character class is not closed");
      }
      if (peek() == ']' && !first) break;
      if (peek() == ']') return error("an empty character class is not supported; write \\] for the character");
      if (peek() == '[') {
        // Plain in most dialects, a nested or POSIX class in others: refuse what is read differently.
        if (peek(1) == ':' || peek(1) == '.' || peek(1) == '=') return error("POSIX classes are not supported");
      }
      if (take("&&") || take("--") || take("~~"))
        return error("set operations in a character class are not supported; escape the character");
      LK_ASSIGN_OR_RETURN(const CodePoints low, character(true));
      const bool range = rest().size() > 1 && peek() == '-' && peek(1) != ']';
      if (!range) {
        set.add(low);
        continue;
      }
      skip();
      LK_ASSIGN_OR_RETURN(const CodePoints high, character(true));
      const auto single = [](const CodePoints& s) {
        return s.ranges.size() == 1 && s.ranges[0].first == s.ranges[0].second;
      };
      if (!single(low) || !single(high)) return error("a range that begins or ends with a class");
      if (low.ranges[0].first > high.ranges[0].first) return error("a range whose end is before its beginning");
      set.add(low.ranges[0].first, high.ranges[0].first);
    }
    skip();
    set.normalize();
    return inverted ? set.inverted() : set;
  }

  Ir& ir_;
  const RegexOptions& options_;
  Budget& budget_;
};

}  // namespace

std::optional<Bounds> parse_bounds(std::string_view text, size_t& at) {
  size_t pos = at;
  const auto number = [&]() -> std::optional<int64_t> {
    const size_t begin = pos;
    int64_t value = 0;
    for (; pos < text.size() && text[pos] >= '0' && text[pos] <= '9'; ++pos)
      value = std::min<int64_t>(value * 10 + (text[pos] - '0'), int64_t{1} << 40);
    return pos == begin ? std::nullopt : std::optional(value);
  };
  if (pos >= text.size() || text[pos++] != '{') return std::nullopt;
  const auto min = number();
  if (!min.has_value()) return std::nullopt;
  Bounds bounds{*min, *min};
  if (pos < text.size() && text[pos] == ',') {
    ++pos;
    const auto max = number();
    bounds.max = max.value_or(kUnbounded);
  }
  if (pos >= text.size() || text[pos++] != '}') return std::nullopt;
  at = pos;
  return bounds;
}

Result<Expr> parse_regex(Ir& ir, std::string_view pattern, const RegexOptions& options, Budget& budget) {
  if (const auto offset = utf8::find_invalid(pattern))
    return invalid_argument("pattern: not valid UTF-8 at byte {}", *offset);
  return Parser(ir, pattern, options, budget).run();
}

}  // namespace lk::grammar
