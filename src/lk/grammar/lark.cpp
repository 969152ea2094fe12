// SPDX-License-Identifier: Apache-2.0
// Lark grammars, as tools of OpenAI's API bring them. Rules are in small letters, terminals in capitals, "start" is the
// root; what %ignore names may stand before, between and behind the terminals of rules. A terminal is any text of its
// kind, not the longest one. Source: Lark's documentation, "Grammar Reference".
#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "lk/base/ascii.h"
#include "lk/base/utf8.h"
#include "lk/grammar/code_points.h"
#include "lk/grammar/cursor.h"
#include "lk/grammar/frontends.h"
#include "lk/grammar/regex_grammar.h"

namespace lk::grammar {
namespace {

// Those of Lark's common.lark that are regular expressions of ours.
constexpr std::pair<std::string_view, std::string_view> kCommon[] = {
    {"DIGIT", "[0-9]"},
    {"HEXDIGIT", "[0-9a-fA-F]"},
    {"INT", "[0-9]+"},
    {"SIGNED_INT", "[+-]?[0-9]+"},
    {"DECIMAL", "[0-9]+\\.[0-9]*|\\.[0-9]+"},
    {"FLOAT", "[0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?"},
    {"SIGNED_FLOAT", "[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?)"},
    {"NUMBER", "[0-9]+([eE][+-]?[0-9]+)?|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?"},
    {"SIGNED_NUMBER", "[+-]?([0-9]+([eE][+-]?[0-9]+)?|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?)"},
    {"ESCAPED_STRING", "\"([^\"\\\\\\n]|\\\\[^\\n])*\""},
    {"LCASE_LETTER", "[a-z]"},
    {"UCASE_LETTER", "[A-Z]"},
    {"LETTER", "[a-zA-Z]"},
    {"WORD", "[a-zA-Z]+"},
    {"CNAME", "[_a-zA-Z][_a-zA-Z0-9]*"},
    {"WS_INLINE", "[ \\t]+"},
    {"WS", "[ \\t\\f\\r\\n]+"},
    {"CR", "\\r"},
    {"LF", "\\n"},
    {"NEWLINE", "(\\r?\\n)+"},
};

// By its first letter.
bool is_terminal(std::string_view name) {
  const size_t first = name.find_first_not_of('_');
  return first != name.npos && name[first] >= 'A' && name[first] <= 'Z';
}

class Parser : private Cursor {
 public:
  Parser(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget)
      : Cursor(text), ir_(ir), limits_(limits), budget_(budget), gap_(ir.add_rule("%ignore")) {}

  Result<RuleId> run() {
    for (skip_lines(); more(); skip_lines()) LK_RETURN_IF_ERROR(statement());
    const auto start = rules_.find("start");
    if (start == rules_.end() || !ir_.rule(start->second).defined)
      return invalid_argument("grammar: there is no rule \"start\"");
    for (const auto& [name, id] : rules_)
      if (!ir_.rule(id).defined) return invalid_argument("grammar: \"{}\" is not defined", name);
    std::vector<Expr> ignored;
    for (const std::string& name : ignored_names_) ignored.push_back(ir_.call(rules_.at(name)));
    ignored.insert(ignored.end(), ignored_.begin(), ignored_.end());
    ir_.define(gap_, ignored.empty() ? ir_.empty() : ir_.repeat(ir_.alt(std::move(ignored)), 0, kUnbounded));
    const RuleId root = ir_.add_rule("%root");
    ir_.define(root, ir_.seq({ir_.call(gap_), ir_.call(start->second)}));
    return root;
  }

 private:
  template <class... Args>
  Status error(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument("grammar, line {}: {}", line(), fmt::format(format, std::forward<Args>(args)...));
  }
  void skip_blanks() {
    while (more()) {
      if (rest().starts_with("//") || peek() == '#') {
        while (more() && peek() != '\n') skip();
      } else if (peek() == ' ' || peek() == '\t' || peek() == '\r') {
        skip();
      } else if (!take("\\\n")) {
        return;
      }
    }
  }
  void skip_lines() {
    for (skip_blanks(); peek() == '\n'; skip_blanks()) skip();
  }
  Status end_of_statement() {
    skip_blanks();
    if (more() && peek() != '\n') return error("unexpected \"{}\"", rest().substr(0, 1));
    return Status();
  }
  std::string_view name() {
    const size_t begin = at();
    while (is_word_char(peek())) skip();
    return since(begin);
  }
  RuleId rule_of(std::string_view name) {
    const auto [at, added] = rules_.try_emplace(std::string(name), 0);
    if (added) at->second = ir_.add_rule(std::string(name));
    return at->second;
  }

  Status statement() {
    if (peek() == '%') return directive();
    while (peek() == '?' || peek() == '!') skip();  // how a tree looks
    const std::string_view rule_name = name();
    if (rule_name.empty() || is_digit(rule_name[0]))
      return error("expected the name of a rule, found \"{}\"", rest().substr(0, 1));
    if (peek() == '{') return error("templates of rules are not supported");
    if (take("."))  // a priority, between texts that are the same for us
      while (is_digit(peek()) || peek() == '-') skip();
    skip_blanks();
    if (!take(":")) return error("expected \":\" after \"{}\"", rule_name);
    const RuleId id = rule_of(rule_name);
    if (ir_.rule(id).defined) return error("\"{}\" is defined twice", rule_name);
    in_terminal_ = is_terminal(rule_name);
    LK_ASSIGN_OR_RETURN(const Expr body, alternatives(0));
    ir_.define(id, body);
    return end_of_statement();
  }

  Status directive() {
    skip();
    const std::string_view word = name();
    skip_blanks();
    if (word == "import") return import();
    if (word != "ignore") return error("%{} is not supported", word);
    in_terminal_ = true;
    if (const std::string_view terminal = peek_name(); !terminal.empty()) {
      skip(terminal.size());
      (void)rule_of(terminal);
      ignored_names_.emplace_back(terminal);
    } else {
      LK_ASSIGN_OR_RETURN(const Expr body, alternatives(0));
      ignored_.push_back(body);
    }
    return end_of_statement();
  }

  // %import common.INT [-> NUMBER], %import common (INT, WS)
  Status import() {
    const std::string_view module = name();
    if (module != "common") return error("%import of \"{}\": only of \"common\"", module);
    if (take(".")) {
      const std::string_view terminal = name();
      std::string_view alias = terminal;
      skip_blanks();
      if (take("->")) {
        skip_blanks();
        alias = name();
      }
      LK_RETURN_IF_ERROR(import_as(terminal, alias));
    } else {
      skip_blanks();
      if (!take("(")) return error("expected \".\" or \"(\" after %import common");
      do {
        skip_lines();
        const std::string_view terminal = name();
        LK_RETURN_IF_ERROR(import_as(terminal, terminal));
        skip_lines();
      } while (take(","));
      if (!take(")")) return error("a list is not closed");
    }
    return end_of_statement();
  }
  Status import_as(std::string_view terminal, std::string_view alias) {
    const auto* const known = std::ranges::find(kCommon, terminal, [](const auto& entry) { return entry.first; });
    if (known == std::end(kCommon)) return error("common.{} is not known here", terminal);
    if (alias.empty()) return error("expected a name");
    const RuleId id = rule_of(alias);
    if (ir_.rule(id).defined) return error("\"{}\" is defined twice", alias);
    LK_ASSIGN_OR_RETURN(const Expr body, parse_regex(ir_, known->second, {.max_depth = limits_.max_depth}, budget_));
    ir_.define(id, body);
    return Status();
  }

  // The name at hand if it is all that follows on this line.
  std::string_view peek_name() const {
    const std::string_view left = rest();
    const std::string_view word(left.begin(), std::ranges::find_if_not(left, is_word_char));
    const size_t after = left.find_first_not_of(" \t\r", word.size());
    const bool alone = after == left.npos || left[after] == '\n' || left.substr(after).starts_with("//");
    return alone ? word : std::string_view();
  }

  // A "|" goes on with the rule on the next line, too; within a group lines do not matter.
  bool take_bar(int depth) {
    const size_t begin = at();
    if (depth > 0)
      skip_lines();
    else
      skip_lines_before_bar();
    if (take("|")) return true;
    if (depth == 0) back_to(begin);
    return false;
  }
  void skip_lines_before_bar() {
    const size_t begin = at();
    skip_lines();
    if (peek() != '|') back_to(begin);
  }

  Result<Expr> alternatives(int depth) {
    if (depth > limits_.max_depth) return error("groups are nested more than {} deep", limits_.max_depth);
    std::vector<Expr> parts;
    (void)take_bar(depth);  // one may stand before the first
    do {
      std::vector<Expr> sequence;
      for (;;) {
        if (depth > 0)
          skip_lines();
        else
          skip_blanks();
        if (!more() || peek() == '\n' || peek() == '|' || peek() == ')' || peek() == ']') break;
        if (take("->")) {  // the name of a tree
          skip_blanks();
          if (name().empty()) return error("expected a name after \"->\"");
          continue;
        }
        if (!budget_.spend(0)) return budget_.status();
        LK_ASSIGN_OR_RETURN(const Expr part, repeated(depth));
        sequence.push_back(part);
      }
      parts.push_back(ir_.seq(std::move(sequence)));
    } while (take_bar(depth));
    return ir_.alt(std::move(parts));
  }

  Result<int64_t> number() {
    int64_t value = 0;
    if (!is_digit(peek())) return error("expected a number");
    while (is_digit(peek()) && value <= kMaxRepeat) value = value * 10 + (next() - '0');
    if (value > kMaxRepeat) return error("more than {} repetitions", kMaxRepeat);
    return value;
  }

  Result<Expr> repeated(int depth) {
    LK_ASSIGN_OR_RETURN(const Expr part, atom(depth));
    if (take("*")) return ir_.repeat(part, 0, kUnbounded);
    if (take("+")) return ir_.repeat(part, 1, kUnbounded);
    if (take("?")) return ir_.optional(part);
    Bounds found{};
    const size_t begin = at();
    skip_blanks();
    if (take("~")) {
      skip_blanks();
      LK_ASSIGN_OR_RETURN(found.min, number());
      found.max = found.min;
      skip_blanks();
      if (take("..")) {
        skip_blanks();
        LK_ASSIGN_OR_RETURN(found.max, number());
      }
    } else if (const auto parsed = bounds()) {
      found = *parsed;
    } else {
      back_to(begin);
      return part;
    }
    if (found.min > kMaxRepeat || found.max > kMaxRepeat) return error("more than {} repetitions", kMaxRepeat);
    if (found.max != kUnbounded && found.max < found.min)
      return error("a repetition whose maximum is below its minimum");
    return ir_.repeat(part, static_cast<int>(found.min), static_cast<int>(found.max));
  }

  // In a rule: what is ignored may follow.
  Expr terminal(Expr expr) { return in_terminal_ ? expr : ir_.seq({expr, ir_.call(gap_)}); }

  Result<Expr> atom(int depth) {
    if (take("(")) {
      LK_ASSIGN_OR_RETURN(const Expr inner, alternatives(depth + 1));
      if (!take(")")) return error("a group is not closed");
      return inner;
    }
    if (take("[")) {
      LK_ASSIGN_OR_RETURN(const Expr inner, alternatives(depth + 1));
      if (!take("]")) return error("\"[\" is not closed");
      return ir_.optional(inner);
    }
    if (peek() == '"') {
      LK_ASSIGN_OR_RETURN(const Expr text, literal());
      return terminal(text);
    }
    if (peek() == '/') {
      LK_ASSIGN_OR_RETURN(const Expr pattern, regex());
      return terminal(pattern);
    }
    const std::string_view called = name();
    if (called.empty() || is_digit(called[0])) return error("unexpected \"{}\"", rest().substr(0, 1));
    if (peek() == '{') return error("templates of rules are not supported");
    const bool is_rule = !is_terminal(called);
    if (is_rule && in_terminal_) return error("a terminal cannot use the rule \"{}\"", called);
    const Expr call = ir_.call(rule_of(called));
    return is_rule ? call : terminal(call);
  }

  // "text", "text"i, "a".."z"
  Result<Expr> literal() {
    LK_ASSIGN_OR_RETURN(const std::u32string text, quoted());
    if (take("..")) {
      if (peek() != '"') return error("a range is \"a\"..\"z\"");
      LK_ASSIGN_OR_RETURN(const std::u32string last, quoted());
      if (text.size() != 1 || last.size() != 1 || last[0] < text[0])
        return error("a range is from one character to a later one");
      CodePoints set;
      set.add(text[0], last[0]);
      set.normalize();
      return ir_.code_points(set);
    }
    if (!is_letter(peek()) || peek() != 'i' || is_word_char(peek(1))) {
      std::string bytes;
      for (const char32_t code : text) utf8::append(bytes, code);
      return ir_.literal(bytes);
    }
    skip();
    std::vector<Expr> parts;
    for (const char32_t code : text) {
      const char32_t lower = code >= 'A' && code <= 'Z' ? code + 32 : code;
      const char32_t upper = code >= 'a' && code <= 'z' ? code - 32 : code;
      if (code >= 0x80) return error("\"...\"i is supported for ASCII only");
      CodePoints set;
      set.add(lower, lower);
      set.add(upper, upper);
      set.normalize();
      parts.push_back(ir_.code_points(set));
    }
    return ir_.seq(std::move(parts));
  }

  Result<std::u32string> quoted() {
    std::u32string out;
    skip();
    while (!take("\"")) {
      if (!more() || peek() == '\n') return error("a string is not closed");
      if (!take("\\")) {
        out += code_point();
        continue;
      }
      LK_ASSIGN_OR_RETURN(const uint32_t code, escape());
      out += code;
    }
    return out;
  }
  Result<uint32_t> escape() {
    if (!more()) return error("a string is not closed");
    const char c = next();
    static constexpr std::string_view kNames = "nrtfvb0", kCodes("\n\r\t\f\v\b\0", 7);
    if (const size_t known = kNames.find(c); known != kNames.npos) return static_cast<uint32_t>(kCodes[known]);
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (is_letter(c) || is_digit(c) || static_cast<unsigned char>(c) >= 0x80 || c == '\0')
        return error("the escape \\{} is not supported", is_letter(c) || is_digit(c) ? std::string(1, c) : "");
      return static_cast<uint32_t>(c);
    }
    const Result<uint32_t> code = hex(digits);
    if (!code.ok()) return error("{}", code.status().message());
    return code;
  }

  // /pattern/, with "\/" for a slash.
  Result<Expr> regex() {
    skip();
    std::string pattern;
    while (peek() != '/') {
      if (!more() || peek() == '\n') return error("a regular expression is not closed");
      if (peek() == '\\' && peek(1) == '/')
        skip();  // a slash means nothing else
      else if (peek() == '\\' && peek(1) != '\n' && rest().size() > 1)
        pattern += next();
      pattern += next();
    }
    skip();
    if (is_letter(peek()))
      return error("the flag \"{}\" of a regular expression is not supported", rest().substr(0, 1));
    Result<Expr> parsed = parse_regex(ir_, pattern, {.max_depth = limits_.max_depth}, budget_);
    if (!parsed.ok()) return error("{}", parsed.status().message());
    return parsed;
  }

  Ir& ir_;
  const GrammarLimits& limits_;
  Budget& budget_;
  const RuleId gap_;
  std::map<std::string, RuleId, std::less<>> rules_;
  std::vector<std::string> ignored_names_;
  std::vector<Expr> ignored_;
  bool in_terminal_ = false;
};

}  // namespace

Result<RuleId> translate_lark(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
  if (const auto offset = utf8::find_invalid(text))
    return invalid_argument("grammar: not valid UTF-8 at byte {}", *offset);
  return Parser(ir, text, limits, budget).run();
}

}  // namespace lk::grammar
