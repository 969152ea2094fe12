// SPDX-License-Identifier: Apache-2.0
// The dialect of EBNF that llama.cpp calls GBNF: rules `name ::= ...`, of which "root" is the start.
#include <algorithm>
#include <map>
#include <optional>

#include "lk/base/utf8.h"
#include "lk/grammar/code_points.h"
#include "lk/grammar/cursor.h"
#include "lk/grammar/frontends.h"
#include "lk/grammar/regex_grammar.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

class Parser : private Cursor {
 public:
  Parser(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget)
      : Cursor(text), ir_(ir), limits_(limits), budget_(budget) {}

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
    return invalid_argument("grammar, line {}: {}", line(), fmt::format(format, std::forward<Args>(args)...));
  }
  void skip_space() {
    while (more()) {
      if (peek() == '#') {
        while (more() && peek() != '\n') skip();
      } else if (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') {
        skip();
      } else {
        return;
      }
    }
  }
  static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  }
  std::string_view name() {
    const size_t begin = at();
    while (is_name(peek())) skip();
    return since(begin);
  }
  RuleId rule_of(std::string_view name) {
    const auto [at, added] = rules_.try_emplace(std::string(name), 0);
    if (added) at->second = ir_.add_rule(std::string(name));
    return at->second;
  }

  Status rule() {
    const std::string_view rule_name = name();
    if (rule_name.empty()) return error("expected a rule name, found \"{}\"", rest().substr(0, 1));
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
    const size_t begin = at();
    const bool named = !name().empty();
    skip_space();
    const bool yes = named && rest().starts_with("::=");
    back_to(begin);
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
        return part;
      }
      if (found.min > kMaxRepeat || found.max > kMaxRepeat) return error("more than {} repetitions", kMaxRepeat);
      if (found.max != kUnbounded && found.max < found.min)
        return error("a repetition whose maximum is below its minimum");
      if (again) return error("a quantifier after a quantifier; use a group");
      part = ir_.repeat(part, static_cast<int>(found.min), static_cast<int>(found.max));
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
    return error("unexpected \"{}\"", rest().substr(0, 1));
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
      if (peek() == '\\' && rest().size() > 1 && std::string_view("dDwWsS").find(peek(1)) != std::string_view::npos) {
        LK_ASSIGN_OR_RETURN(const CodePoints named, shorthand());
        set.add(named);
        continue;
      }
      LK_ASSIGN_OR_RETURN(const uint32_t low, character());
      uint32_t high = low;
      if (peek() == '-' && rest().size() > 1 && peek(1) != ']') {
        skip();
        LK_ASSIGN_OR_RETURN(high, character());
      }
      if (high < low) return error("a range whose end is before its beginning");
      set.add(low, high);
    }
    set.normalize();
    return ir_.code_points(inverted ? set.inverted() : set);
  }

  Result<CodePoints> shorthand() {
    skip();
    CodePoints set;
    const char c = next();
    if (c == 'd' || c == 'D') set = {{'0', '9'}};
    if (c == 'w' || c == 'W') set = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    if (c == 's' || c == 'S') set = {{'\t', '\r'}, {' ', ' '}};
    return c == 'D' || c == 'W' || c == 'S' ? set.inverted() : set;
  }

  // One character, perhaps escaped. Requires: more().
  Result<uint32_t> character() {
    if (!take("\\")) return code_point();
    const std::string_view escaped = rest().substr(0, more() ? utf8::char_length(peek()) : 0);
    const char c = next();
    switch (c) {
      case 'n':
        return uint32_t{'\n'};
      case 'r':
        return uint32_t{'\r'};
      case 't':
        return uint32_t{'\t'};
      case 'x':
        return escaped_hex(2);
      case 'u':
        return escaped_hex(4);
      case 'U':
        return escaped_hex(8);
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
        return error("the escape \\{} is not supported", escaped);
    }
  }
  Result<uint32_t> escaped_hex(int count) {
    const Result<uint32_t> code = hex(count);
    if (!code.ok()) return error("{}", code.status().message());
    return code;
  }

  Ir& ir_;
  const GrammarLimits& limits_;
  Budget& budget_;
  std::map<std::string, RuleId, std::less<>> rules_;
};

}  // namespace

Result<RuleId> translate_ebnf(Ir& ir, std::string_view text, const GrammarLimits& limits, Budget& budget) {
  if (const auto offset = utf8::find_invalid(text))
    return invalid_argument("grammar: not valid UTF-8 at byte {}", *offset);
  return Parser(ir, text, limits, budget).run();
}

}  // namespace lk::grammar
