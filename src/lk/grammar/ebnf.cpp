// SPDX-License-Identifier: Apache-2.0
// The dialect of EBNF that llama.cpp calls GBNF: rules `name ::= ...`, of which "root" is the start.
#include <algorithm>
#include <map>
#include <optional>

#include "lk/base/utf8.h"
#include "lk/grammar/code_points.h"
#include "lk/grammar/frontends.h"
#include "lk/grammar/regex_grammar.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

class Parser {
 public:
  Parser(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget)
      : ir_(ir), text_(text), limits_(limits), budget_(budget) {}

  Result<RuleId> run() {
    for (skip_space(); more(); skip_space()) LK_RETURN_IF_ERROR(rule());
    const auto root = rules_.find("root");
    if (root == rules_.end() || !ir_.rule(root->second).defined)
      return invalid_argument("grammar: there is no rule \"root\"");
    for (const auto& [name, id] : rules_) {
      if (!ir_.rule(id).defined) return invalid_argument("grammar: rule \"{}\" is not defined", name);
    }
    return root->second;
  }

 private:
  template <class... Args>
  Status error(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument("grammar, line {}: {}",
                            1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n'),
                            fmt::format(format, std::forward<Args>(args)...));
  }
  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  bool take(std::string_view text) {
    if (!text_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  void skip_space() {
    while (more()) {
      if (peek() == '#') {
        while (more() && peek() != '\n') ++at_;
      } else if (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') {
        ++at_;
      } else {
        return;
      }
    }
  }
  static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  }
  std::string_view name() {
    const size_t begin = at_;
    while (is_name(peek())) ++at_;
    return text_.substr(begin, at_ - begin);
  }
  RuleId rule_of(std::string_view name) {
    const auto [at, added] = rules_.try_emplace(std::string(name), 0);
    if (added) at->second = ir_.add_rule(std::string(name));
    return at->second;
  }

  Status rule() {
    const std::string_view rule_name = name();
    if (rule_name.empty()) return error("expected a rule name, found \"{}\"", text_.substr(at_, 1));
    skip_space();
    if (!take("::=")) return error("expected \"::=\" after \"{}\"", rule_name);
    const RuleId id = rule_of(rule_name);
    if (ir_.rule(id).defined) return error("rule \"{}\" is defined twice", rule_name);
    LK_ASSIGN_OR_RETURN(const Expr body, alternatives(0));
    if (peek() == ')') return error("an unmatched \")\"");
    ir_.define(id, body);
    return {};
  }

  // At a name that is followed by "::=": the next rule.
  bool at_rule() {
    const size_t begin = at_;
    name();
    skip_space();
    const bool yes = at_ > begin && text_.substr(at_).starts_with("::=");
    at_ = begin;
    return yes;
  }

  Result<Expr> alternatives(int depth) {
    if (depth > limits_.max_depth) return error("groups are nested more than {} deep", limits_.max_depth);
    std::vector<Expr> parts;
    do {
      std::vector<Expr> sequence;
      for (skip_space(); more() && peek() != '|' && peek() != ')'; skip_space()) {
        if (is_name(peek()) && at_rule()) break;
        if (!budget_.spend(0)) return budget_.status();
        LK_ASSIGN_OR_RETURN(const Expr part, repeated(depth));
        sequence.push_back(part);
      }
      parts.push_back(ir_.seq(std::move(sequence)));
    } while (take("|"));
    return ir_.alt(std::move(parts));
  }

  Result<Expr> repeated(int depth) {
    LK_ASSIGN_OR_RETURN(Expr part, atom(depth));
    for (bool again = false;; again = true) {
      Bounds bounds{};
      if (take("*")) {
        bounds = {0, kUnbounded};
      } else if (take("+")) {
        bounds = {1, kUnbounded};
      } else if (take("?")) {
        bounds = {0, 1};
      } else if (const auto parsed = parse_bounds(text_, at_)) {
        bounds = *parsed;
      } else {
        return part;
      }
      if (bounds.min > kMaxRepeat || bounds.max > kMaxRepeat) return error("more than {} repetitions", kMaxRepeat);
      if (bounds.max != kUnbounded && bounds.max < bounds.min)
        return error("a repetition whose maximum is below its minimum");
      if (again) return error("a quantifier after a quantifier; use a group");
      part = ir_.repeat(part, static_cast<int>(bounds.min), static_cast<int>(bounds.max));
    }
  }

  Result<Expr> atom(int depth) {
    if (take("(")) {
      LK_ASSIGN_OR_RETURN(const Expr inner, alternatives(depth + 1));
      if (!take(")")) return error("a group is not closed");
      return inner;
    }
    if (take("\"")) return literal('"');
    if (take("'")) return literal('\'');
    if (take("[")) return char_class();
    if (take(".")) return ir_.code_points(CodePoints::all());
    const std::string_view rule_name = name();
    if (!rule_name.empty()) return ir_.call(rule_of(rule_name));
    return error("unexpected \"{}\"", text_.substr(at_, 1));
  }

  Result<Expr> literal(char quote) {
    std::string out;
    while (!take(std::string_view(&quote, 1))) {
      if (!more() || peek() == '\n') return error("a string is not closed");
      LK_ASSIGN_OR_RETURN(const uint32_t code, character());
      utf8::append(out, code);
    }
    return ir_.literal(out);
  }

  Result<Expr> char_class() {
    const bool inverted = take("^");
    CodePoints set;
    while (!take("]")) {
      if (!more() || peek() == '\n') return error("a character class is not closed");
      if (peek() == '\\' && at_ + 1 < text_.size() &&
          std::string_view("dDwWsS").find(text_[at_ + 1]) != std::string_view::npos) {
        LK_ASSIGN_OR_RETURN(const CodePoints named, shorthand());
        set.add(named);
        continue;
      }
      LK_ASSIGN_OR_RETURN(const uint32_t low, character());
      uint32_t high = low;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        LK_ASSIGN_OR_RETURN(high, character());
      }
      if (high < low) return error("a range whose end is before its beginning");
      set.add(low, high);
    }
    set.normalize();
    return ir_.code_points(inverted ? set.inverted() : set);
  }

  Result<CodePoints> shorthand() {
    ++at_;
    CodePoints set;
    const char c = text_[at_++];
    if (c == 'd' || c == 'D') set = {{'0', '9'}};
    if (c == 'w' || c == 'W') set = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    if (c == 's' || c == 'S') set = {{'\t', '\r'}, {' ', ' '}};
    return c == 'D' || c == 'W' || c == 'S' ? set.inverted() : set;
  }

  // One character, perhaps escaped. Requires: more().
  Result<uint32_t> character() {
    if (!take("\\")) {
      const uint32_t code = utf8::decode(text_, at_);
      at_ += utf8::char_length(text_[at_]);
      return code;
    }
    const char c = peek();
    ++at_;
    switch (c) {
      case 'n':
        return uint32_t{'\n'};
      case 'r':
        return uint32_t{'\r'};
      case 't':
        return uint32_t{'\t'};
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      case 'U':
        return hex(8);
      case '"':
      case '\'':
      case '\\':
      case '[':
      case ']':
      case '^':
      case '-':
      case '/':
      case '.':
      case '$':
      case '(':
      case ')':
      case '{':
      case '}':
      case '|':
      case '*':
      case '+':
      case '?':
      case ' ':
        return static_cast<uint32_t>(c);
      default:
        --at_;
        return error("the escape \\{} is not supported", text_.substr(at_, more() ? utf8::char_length(c) : 0));
    }
  }
  Result<uint32_t> hex(int count) {
    uint32_t code = 0;
    for (int k = 0; k < count; ++k) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return error("an escape with fewer than {} hexadecimal digits", count);
      code = code << 4 | static_cast<uint32_t>(digit);
      ++at_;
    }
    if (code > CodePoints::kMax || (code >= 0xD800 && code <= 0xDFFF))
      return error("an escape that is no Unicode character");
    return code;
  }

  Ir& ir_;
  std::string_view text_;
  const GrammarLimits& limits_;
  Budget& budget_;
  std::map<std::string, RuleId, std::less<>> rules_;
  size_t at_ = 0;
};

}  // namespace

Result<RuleId> translate_ebnf(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
  if (const auto offset = utf8::find_invalid(text))
    return invalid_argument("grammar: not valid UTF-8 at byte {}", *offset);
  return Parser(ir, text, limits, budget).run();
}

}  // namespace lk::grammar
