// SPDX-License-Identifier: Apache-2.0
// The expression half of the parser: precedence climbing as in jinja2's parser.py, level by level.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/text/jinja/ast.h"
#include "lk/text/jinja/lexer.h"

namespace lk::jinja {

class ExprParser {
 public:
  explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  [[noreturn]] void error(std::string message, int line = 0) const {
    throw TemplateError{StatusCode::kInvalidArgument, std::move(message), line > 0 ? line : current().line};
  }

  const Token& current() const { return tokens_[at_]; }
  const Token& peek() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token& take() {
    Token& token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool at_operator(std::string_view text) const {
    return current().kind == TokenKind::kOperator && current().text == text;
  }
  bool at_name(std::string_view text) const { return current().kind == TokenKind::kName && current().text == text; }
  bool skip_operator(std::string_view text) { return at_operator(text) && (take(), true); }
  bool skip_name(std::string_view text) { return at_name(text) && (take(), true); }
  void expect_kind(TokenKind kind, std::string_view what);
  void expect_operator(std::string_view text);
  std::string expect_name();
  std::string expect_identifier();  // a name that can be assigned to

  // a, b, c is a tuple; `end_name` is a name that ends it.
  ExprPtr parse_tuple(bool conditional = true, std::string_view end_name = {}, bool parenthesized = false);
  ExprPtr parse_expression(bool conditional = true);
  ExprPtr parse_filters(ExprPtr node, bool inline_start);
  Target parse_target(bool allow_attribute);

  class CountGuard {
   public:
    explicit CountGuard(int& count) : count_(count) { ++count_; }
    ~CountGuard() { --count_; }

   private:
    int& count_;
  };
  // Recursion of the parser: a parenthesis passes four of these, a block one of weight four.
  class DepthGuard {
   public:
    explicit DepthGuard(ExprParser& parser, int weight = 1) : parser_(parser), weight_(weight) {
      parser_.depth_ += weight_;
      if (parser_.depth_ > 400) parser_.fail_depth();
    }
    ~DepthGuard() { parser_.depth_ -= weight_; }
    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;

   private:
    ExprParser& parser_;
    int weight_;
  };

  // Names with a meaning in macros, seen since the innermost macro began.
  struct SpecialNames {
    bool varargs = false, kwargs = false, caller = false;
  };
  SpecialNames special_names_;
  int num_conditional_ = 0;  // enclosing if tags: unknown filters there fail when reached, as in jinja2

 private:
  [[noreturn]] void fail_depth() const;
  void check_depth(int depth) const;
  ExprPtr make(ExprKind kind, int line) const;
  void adopt(Expr& parent, ExprPtr child) const;  // as the last of args

  ExprPtr parse_conditional();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filters);
  ExprPtr parse_postfix(ExprPtr node);
  ExprPtr parse_filter_suffixes(ExprPtr node);
  ExprPtr parse_primary();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_attribute(ExprPtr node);
  ExprPtr parse_subscript(ExprPtr node);
  ExprPtr parse_subscript_item();
  ExprPtr parse_call(ExprPtr node);
  ExprPtr parse_test(ExprPtr node);
  void parse_arguments(Expr& call);
  Target parse_target_item(bool allow_attribute);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace lk::jinja
