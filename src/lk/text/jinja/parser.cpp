// SPDX-License-Identifier: Apache-2.0
// Statements. Expressions are in jinja_expr_parser.cpp.
#include "lk/text/jinja/parser.h"

#include <algorithm>
#include <array>

#include "lk/text/jinja/expr_parser.h"

namespace lk::jinja {
namespace {

constexpr std::array<std::string_view, 9> kRefusedTags = {"include", "import", "from",  "extends",   "block",
                                                          "do",      "trans",  "debug", "autoescape"};

class Parser : public ExprParser {
 public:
  using ExprParser::ExprParser;

  Block parse_template() {
    Block body = parse_body({});
    if (current().kind != TokenKind::kEnd) error("unexpected end tag");
    return body;
  }

 private:
  using Words = std::vector<std::string_view>;

  static std::unique_ptr<Stmt> make(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  // Up to a tag named in `ends`, whose name becomes the current token; to the end of the template
  // if empty.
  Block parse_body(const Words& ends) {
    const DepthGuard guard(*this, 4);
    Block body;
    while (current().kind != TokenKind::kEnd) {
      const Token& token = current();
      if (token.kind == TokenKind::kText) {
        body.push_back(make(StmtKind::kText, token.line));
        body.back()->text = take().text;
      } else if (token.kind == TokenKind::kPrintBegin) {
        take();
        body.push_back(make(StmtKind::kPrint, current().line));
        body.back()->exprs.push_back(parse_tuple());
        expect_kind(TokenKind::kPrintEnd, "}}");
      } else {
        expect_kind(TokenKind::kBlockBegin, "a tag");
        if (current().kind != TokenKind::kName) error("a tag name was expected");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return body;
        body.push_back(parse_statement(ends));
        expect_kind(TokenKind::kBlockEnd, "%}");
      }
    }
    if (!ends.empty()) error(fmt::format("the template ends before {{% {} %}}", ends.back()));
    return body;
  }

  // The "%}" of the opening tag, the body, and the name of the end tag.
  Block parse_block(const Words& ends) {
    skip_operator(":");
    expect_kind(TokenKind::kBlockEnd, "%}");
    return parse_body(ends);
  }
  Block parse_block_to(std::string_view end) {
    Block body = parse_block({end});
    take();
    return body;
  }

  std::unique_ptr<Stmt> parse_statement(const Words& ends) {
    const int line = current().line;
    const std::string tag = current().text;
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "call") return parse_call_block();
    if (tag == "with") return parse_with();
    take();
    if (tag == "print") {
      auto stmt = make(StmtKind::kPrint, line);
      while (current().kind != TokenKind::kBlockEnd) {
        if (!stmt->exprs.empty()) expect_operator(",");
        stmt->exprs.push_back(parse_expression());
      }
      return stmt;
    }
    if (tag == "filter") {
      auto stmt = make(StmtKind::kFilterBlock, line);
      stmt->exprs.push_back(parse_filters(nullptr, true));
      stmt->bodies.push_back(parse_block_to("endfilter"));
      return stmt;
    }
    if (tag == "generation") {  // marks the assistant's tokens for training; renders as its body
      auto stmt = make(StmtKind::kGeneration, line);
      const LoopGuard guard(*this, 0);
      stmt->bodies.push_back(parse_block_to("endgeneration"));
      return stmt;
    }
    if (tag == "break" || tag == "continue") {
      if (loop_depth_ == 0) error(fmt::format("{{% {} %}} outside a loop", tag), line);
      return make(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
    }
    if (std::find(kRefusedTags.begin(), kRefusedTags.end(), tag) != kRefusedTags.end()) {
      throw TemplateError{StatusCode::kUnsupported,
                          fmt::format("the tag {{% {} %}} is not supported in chat templates", tag), line};
    }
    error(ends.empty() ? fmt::format("unknown tag {{% {} %}}", tag)
                       : fmt::format("unknown tag {{% {} %}}; {{% {} %}} is still to come", tag, ends.back()),
          line);
  }

  std::unique_ptr<Stmt> parse_if() {
    auto stmt = make(StmtKind::kIf, current().line);
    const CountGuard conditional(num_conditional_);
    while (true) {
      take();  // if, elif
      stmt->exprs.push_back(parse_tuple(false));
      stmt->bodies.push_back(parse_block({"elif", "else", "endif"}));
      if (current().text != "elif") break;
    }
    if (take().text == "else") stmt->bodies.push_back(parse_block_to("endif"));
    return stmt;
  }

  std::unique_ptr<Stmt> parse_for() {
    auto stmt = make(StmtKind::kFor, take().line);
    stmt->targets.push_back(parse_target(false));
    if (assigns(stmt->targets[0], "loop")) error("a loop cannot assign to the name loop", stmt->line);
    if (!skip_name("in")) error("'in' was expected in this for tag");
    stmt->exprs.push_back(parse_tuple(false, "recursive"));
    stmt->exprs.push_back(skip_name("if") ? parse_expression() : nullptr);
    if (at_name("recursive")) {
      throw TemplateError{StatusCode::kUnsupported,
                          "recursive for loops are not supported; call a macro recursively instead", current().line};
    }
    {
      const LoopGuard guard(*this, loop_depth_ + 1);
      stmt->bodies.push_back(parse_block({"else", "endfor"}));
    }
    if (take().text == "else") stmt->bodies.push_back(parse_block_to("endfor"));
    return stmt;
  }

  static bool assigns(const Target& target, std::string_view name) {
    return (!target.is_tuple && target.attribute.empty() && target.name == name) ||
           std::any_of(target.parts.begin(), target.parts.end(),
                       [&](const Target& part) { return assigns(part, name); });
  }

  std::unique_ptr<Stmt> parse_set() {
    auto stmt = make(StmtKind::kSet, take().line);
    stmt->targets.push_back(parse_target(true));
    if (skip_operator("=")) {
      stmt->exprs.push_back(parse_tuple());
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    stmt->exprs.push_back(at_operator("|") ? parse_filters(nullptr, false) : nullptr);
    const LoopGuard guard(*this, loop_depth_);
    stmt->bodies.push_back(parse_block_to("endset"));
    return stmt;
  }

  std::unique_ptr<Stmt> parse_with() {
    auto stmt = make(StmtKind::kWith, take().line);
    while (current().kind != TokenKind::kBlockEnd && !at_operator(":")) {
      if (!stmt->targets.empty()) expect_operator(",");
      stmt->targets.push_back(parse_target(false));
      expect_operator("=");
      stmt->exprs.push_back(parse_expression());
    }
    stmt->bodies.push_back(parse_block_to("endwith"));
    return stmt;
  }

  void parse_signature(Macro& macro) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      const std::string name = expect_identifier();
      if (std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end()) {
        error(fmt::format("the parameter {} is named twice", name));
      }
      macro.parameters.push_back(name);
      if (skip_operator("=")) {
        macro.defaults.push_back(parse_expression());
      } else if (!macro.defaults.empty()) {
        error("a parameter without a default follows one with a default");
      }
    }
    expect_operator(")");
  }

  void parse_macro_body(Macro& macro, std::string_view end) {
    const SpecialNames outer = std::exchange(special_names_, {});
    {
      const LoopGuard guard(*this, 0);
      macro.body = parse_block_to(end);
    }
    const auto is_parameter = [&](std::string_view name) {
      return std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end();
    };
    macro.takes_varargs = special_names_.varargs && !is_parameter("varargs");
    macro.takes_kwargs = special_names_.kwargs && !is_parameter("kwargs");
    macro.takes_caller = special_names_.caller && !is_parameter("caller");
    special_names_ = outer;
  }

  std::unique_ptr<Stmt> parse_macro() {
    auto stmt = make(StmtKind::kMacro, take().line);
    stmt->macro = std::make_unique<Macro>();
    stmt->macro->name = expect_identifier();
    parse_signature(*stmt->macro);
    parse_macro_body(*stmt->macro, "endmacro");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_call_block() {
    auto stmt = make(StmtKind::kCallBlock, take().line);
    stmt->macro = std::make_unique<Macro>();
    stmt->macro->name = "caller";
    if (at_operator("(")) parse_signature(*stmt->macro);
    stmt->exprs.push_back(parse_expression());
    if (stmt->exprs[0]->kind != ExprKind::kCall) error("a call was expected in this call tag", stmt->line);
    parse_macro_body(*stmt->macro, "endcall");
    return stmt;
  }

  // `break` inside a macro or generation body does not reach the loop around it.
  class LoopGuard {
   public:
    LoopGuard(Parser& parser, int depth) : parser_(parser), outer_(parser.loop_depth_) { parser.loop_depth_ = depth; }
    ~LoopGuard() { parser_.loop_depth_ = outer_; }

   private:
    Parser& parser_;
    int outer_;
  };
  int loop_depth_ = 0;
};

}  // namespace

Block parse(std::string_view source) { return Parser(lex(source)).parse_template(); }

}  // namespace lk::jinja
