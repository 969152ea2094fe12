// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/expr_parser.h"

#include <algorithm>

#include "lk/text/jinja/filters.h"
#include "lk/text/jinja/parser.h"

namespace lk::jinja {
namespace {

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "template text";
    case TokenKind::kBlockBegin:
      return "{%";
    case TokenKind::kBlockEnd:
      return "%}";
    case TokenKind::kPrintBegin:
      return "{{";
    case TokenKind::kPrintEnd:
      return "}}";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return "a number";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return "'" + token.text + "'";
  }
}

bool is_reserved(std::string_view name) {
  static constexpr std::string_view kNames[] = {"true", "false", "none", "True", "False", "None"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace

void ExprParser::fail_depth() const {
  throw TemplateError{StatusCode::kInvalidArgument,
                      "expressions or blocks nest too deep here; split the expression with set tags", current().line};
}

void ExprParser::check_depth(int depth) const {
  if (depth > kMaxSyntaxDepth) fail_depth();
}

ExprPtr ExprParser::make(ExprKind kind, int line) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

void ExprParser::adopt(Expr& parent, ExprPtr child) const {
  if (child != nullptr) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    check_depth(parent.depth);
  }
  parent.args.push_back(std::move(child));
}

void ExprParser::expect_kind(TokenKind kind, std::string_view what) {
  if (current().kind != kind) error(fmt::format("expected {}, got {}", what, describe(current())));
  take();
}
void ExprParser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) error(fmt::format("expected '{}', got {}", text, describe(current())));
}
std::string ExprParser::expect_name() {
  if (current().kind != TokenKind::kName) error(fmt::format("expected a name, got {}", describe(current())));
  return take().text;
}
std::string ExprParser::expect_identifier() {
  if (is_reserved(current().text)) error(fmt::format("cannot assign to {}", current().text));
  return expect_name();
}

ExprPtr ExprParser::parse_tuple(bool conditional, std::string_view end_name, bool parenthesized) {
  const DepthGuard guard(*this);
  ExprPtr tuple = make(ExprKind::kTuple, current().line);
  bool is_tuple = false;
  while (true) {
    if (!tuple->args.empty()) expect_operator(",");
    const bool at_end = current().kind == TokenKind::kPrintEnd || current().kind == TokenKind::kBlockEnd ||
                        at_operator(")") || (!end_name.empty() && at_name(end_name));
    if (at_end) break;
    adopt(*tuple, parse_expression(conditional));
    if (!at_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !tuple->args.empty()) return std::move(tuple->args[0]);
  if (!is_tuple && !parenthesized) error(fmt::format("expected an expression, got {}", describe(current())));
  return tuple;
}

Target ExprParser::parse_target(bool allow_attribute) {
  Target target;
  target.line = current().line;
  while (true) {
    if (!target.parts.empty()) expect_operator(",");
    if (!target.parts.empty() && (at_name("in") || at_operator("=") || current().kind == TokenKind::kBlockEnd)) break;
    if (target.is_tuple && at_operator(")")) break;
    target.parts.push_back(parse_target_item(allow_attribute));
    if (!at_operator(",")) break;
    target.is_tuple = true;
  }
  if (target.is_tuple) return target;
  Target single = std::move(target.parts[0]);
  return single;
}

Target ExprParser::parse_target_item(bool allow_attribute) {
  const DepthGuard guard(*this);
  if (skip_operator("(")) {
    Target target = parse_target(allow_attribute);
    expect_operator(")");
    return target;
  }
  Target target;
  target.line = current().line;
  target.name = expect_identifier();
  if (allow_attribute && skip_operator(".")) target.attribute = expect_name();
  return target;
}

ExprPtr ExprParser::parse_expression(bool conditional) {
  const DepthGuard guard(*this);
  return conditional ? parse_conditional() : parse_or();
}

ExprPtr ExprParser::parse_conditional() {
  const DepthGuard guard(*this);
  const int line = current().line;
  ExprPtr value = parse_or();
  while (skip_name("if")) {
    const CountGuard conditional(num_conditional_);
    ExprPtr expr = make(ExprKind::kConditional, line);
    adopt(*expr, std::move(value));
    adopt(*expr, parse_or());
    adopt(*expr, skip_name("else") ? parse_conditional() : nullptr);
    value = std::move(expr);
  }
  return value;
}

ExprPtr ExprParser::parse_or() {
  ExprPtr left = parse_and();
  while (at_name("or")) {
    ExprPtr expr = make(ExprKind::kOr, take().line);
    adopt(*expr, std::move(left));
    adopt(*expr, parse_and());
    left = std::move(expr);
  }
  return left;
}

ExprPtr ExprParser::parse_and() {
  ExprPtr left = parse_not();
  while (at_name("and")) {
    ExprPtr expr = make(ExprKind::kAnd, take().line);
    adopt(*expr, std::move(left));
    adopt(*expr, parse_not());
    left = std::move(expr);
  }
  return left;
}

ExprPtr ExprParser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const DepthGuard guard(*this);
  ExprPtr expr = make(ExprKind::kNot, take().line);
  adopt(*expr, parse_not());
  return expr;
}

ExprPtr ExprParser::parse_compare() {
  static constexpr std::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
  const int line = current().line;
  ExprPtr first = parse_sum();
  ExprPtr compare;
  while (true) {
    std::string op;
    if (current().kind == TokenKind::kOperator &&
        std::find(std::begin(kOperators), std::end(kOperators), current().text) != std::end(kOperators)) {
      op = take().text;
    } else if (skip_name("in")) {
      op = "in";
    } else if (at_name("not") && peek().kind == TokenKind::kName && peek().text == "in") {
      take();
      take();
      op = "not in";
    } else {
      break;
    }
    if (compare == nullptr) {
      compare = make(ExprKind::kCompare, line);
      adopt(*compare, std::move(first));
    }
    compare->operators.push_back(std::move(op));
    adopt(*compare, parse_sum());
  }
  return compare != nullptr ? std::move(compare) : std::move(first);
}

ExprPtr ExprParser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    ExprPtr expr = make(ExprKind::kBinary, current().line);
    expr->name = take().text;
    adopt(*expr, std::move(left));
    adopt(*expr, parse_concat());
    left = std::move(expr);
  }
  return left;
}

ExprPtr ExprParser::parse_concat() {
  ExprPtr first = parse_product();
  if (!at_operator("~")) return first;
  ExprPtr expr = make(ExprKind::kConcat, current().line);
  adopt(*expr, std::move(first));
  while (skip_operator("~")) adopt(*expr, parse_product());
  return expr;
}

ExprPtr ExprParser::parse_product() {
  ExprPtr left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    ExprPtr expr = make(ExprKind::kBinary, current().line);
    expr->name = take().text;
    adopt(*expr, std::move(left));
    adopt(*expr, parse_power());
    left = std::move(expr);
  }
  return left;
}

ExprPtr ExprParser::parse_power() {
  ExprPtr left = parse_unary(true);
  while (at_operator("**")) {  // left-associative, unlike Python
    ExprPtr expr = make(ExprKind::kBinary, current().line);
    expr->name = take().text;
    adopt(*expr, std::move(left));
    adopt(*expr, parse_unary(true));
    left = std::move(expr);
  }
  return left;
}

ExprPtr ExprParser::parse_unary(bool with_filters) {
  const DepthGuard guard(*this);
  ExprPtr node;
  if (at_operator("-") || at_operator("+")) {
    node = make(at_operator("-") ? ExprKind::kNegative : ExprKind::kPositive, current().line);
    take();
    adopt(*node, parse_unary(false));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filters ? parse_filter_suffixes(std::move(node)) : std::move(node);
}

ExprPtr ExprParser::parse_postfix(ExprPtr node) {
  while (true) {
    if (at_operator(".")) {
      node = parse_attribute(std::move(node));
    } else if (at_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr ExprParser::parse_filter_suffixes(ExprPtr node) {
  while (true) {
    if (at_operator("|")) {
      node = parse_filters(std::move(node), false);
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr ExprParser::parse_primary() {
  const Token& token = current();
  const int line = token.line;
  ExprPtr node;
  if (token.kind == TokenKind::kName) {
    const std::string name = take().text;
    if (is_reserved(name)) {
      node = make(ExprKind::kConstant, line);
      const char initial = static_cast<char>(name[0] | 0x20);
      node->constant = initial == 'n' ? none() : boolean(initial == 't');
      return node;
    }
    special_names_.varargs |= name == "varargs";
    special_names_.kwargs |= name == "kwargs";
    special_names_.caller |= name == "caller";
    node = make(ExprKind::kName, line);
    node->name = name;
    return node;
  }
  if (token.kind == TokenKind::kString) {
    std::string text = take().text;
    while (current().kind == TokenKind::kString) text += take().text;  // "a" "b" is one string
    node = make(ExprKind::kConstant, line);
    node->constant = constant_string(std::move(text));
    return node;
  }
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) {
    node = make(ExprKind::kConstant, line);
    node->constant = token.kind == TokenKind::kInteger ? integer(token.integer) : Value::Data(token.number);
    take();
    return node;
  }
  if (skip_operator("(")) {
    node = parse_tuple(true, {}, true);
    expect_operator(")");
    return node;
  }
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  error(fmt::format("unexpected {}", describe(token)));
}

ExprPtr ExprParser::parse_list() {
  ExprPtr list = make(ExprKind::kList, take().line);
  while (!at_operator("]")) {
    if (!list->args.empty()) expect_operator(",");
    if (at_operator("]")) break;
    adopt(*list, parse_expression());
  }
  expect_operator("]");
  return list;
}

ExprPtr ExprParser::parse_dict() {
  ExprPtr dict = make(ExprKind::kDict, take().line);
  while (!at_operator("}")) {
    if (!dict->args.empty()) expect_operator(",");
    if (at_operator("}")) break;
    adopt(*dict, parse_expression());
    expect_operator(":");
    adopt(*dict, parse_expression());
  }
  expect_operator("}");
  return dict;
}

ExprPtr ExprParser::parse_attribute(ExprPtr node) {
  const int line = take().line;
  if (current().kind == TokenKind::kInteger) {
    ExprPtr expr = make(ExprKind::kSubscript, line);
    adopt(*expr, std::move(node));
    adopt(*expr, make(ExprKind::kConstant, line));
    expr->args[1]->constant = integer(take().integer);
    return expr;
  }
  ExprPtr expr = make(ExprKind::kAttribute, line);
  adopt(*expr, std::move(node));
  expr->name = expect_name();
  return expr;
}

ExprPtr ExprParser::parse_subscript(ExprPtr node) {
  ExprPtr expr = make(ExprKind::kSubscript, take().line);
  adopt(*expr, std::move(node));
  ExprPtr tuple = make(ExprKind::kTuple, expr->line);
  while (!at_operator("]")) {
    if (!tuple->args.empty()) expect_operator(",");
    adopt(*tuple, parse_subscript_item());
  }
  expect_operator("]");
  const bool single = tuple->args.size() == 1;
  if (!single && std::any_of(tuple->args.begin(), tuple->args.end(),
                             [](const ExprPtr& arg) { return arg->kind == ExprKind::kSlice; })) {
    error("slices of several dimensions are not supported", expr->line);
  }
  adopt(*expr, single ? std::move(tuple->args[0]) : std::move(tuple));
  return expr;
}

ExprPtr ExprParser::parse_subscript_item() {
  ExprPtr slice = make(ExprKind::kSlice, current().line);
  const auto at_end = [&] { return at_operator("]") || at_operator(",") || at_operator(":"); };
  if (at_operator(":")) {
    adopt(*slice, nullptr);
  } else {
    ExprPtr first = parse_expression();
    if (!at_operator(":")) return first;
    adopt(*slice, std::move(first));
  }
  expect_operator(":");
  adopt(*slice, at_end() ? nullptr : parse_expression());
  adopt(*slice, skip_operator(":") && !at_end() ? parse_expression() : nullptr);
  return slice;
}

ExprPtr ExprParser::parse_call(ExprPtr node) {
  ExprPtr call = make(ExprKind::kCall, current().line);
  adopt(*call, std::move(node));
  parse_arguments(*call);
  return call;
}

void ExprParser::parse_arguments(Expr& call) {
  const int line = current().line;
  const auto adopt_as = [&](ExprPtr child) {
    call.depth = std::max(call.depth, child->depth + 1);
    check_depth(call.depth);
    return child;
  };
  const auto require = [&](bool valid) {
    if (!valid) error("these call arguments are in the wrong order", line);
  };
  expect_operator("(");
  bool first = true;
  while (!at_operator(")")) {
    if (!first) {
      expect_operator(",");
      if (at_operator(")")) break;
    }
    first = false;
    if (skip_operator("*")) {
      require(call.star == nullptr && call.star_star == nullptr);
      call.star = adopt_as(parse_expression());
    } else if (skip_operator("**")) {
      require(call.star_star == nullptr);
      call.star_star = adopt_as(parse_expression());
    } else if (current().kind == TokenKind::kName && peek().kind == TokenKind::kOperator && peek().text == "=") {
      require(call.star_star == nullptr);
      const std::string name = take().text;
      take();
      const auto same = [&](const auto& other) { return other.first == name; };
      if (std::any_of(call.named.begin(), call.named.end(), same)) {
        error(fmt::format("the argument {} is given twice", name), line);
      }
      call.named.emplace_back(name, adopt_as(parse_expression()));
    } else {
      require(call.star == nullptr && call.star_star == nullptr && call.named.empty());
      adopt(call, parse_expression());
    }
  }
  expect_operator(")");
}

ExprPtr ExprParser::parse_filters(ExprPtr node, bool inline_start) {
  while (at_operator("|") || inline_start) {
    if (!inline_start) take();
    inline_start = false;
    ExprPtr filter = make(ExprKind::kFilter, current().line);
    filter->name = expect_name();
    while (skip_operator(".")) filter->name += "." + expect_name();
    if (num_conditional_ == 0) require_filter(filter->name);
    adopt(*filter, std::move(node));
    if (at_operator("(")) parse_arguments(*filter);
    node = std::move(filter);
  }
  return node;
}

ExprPtr ExprParser::parse_test(ExprPtr node) {
  ExprPtr test = make(ExprKind::kTest, take().line);
  const bool negated = skip_name("not");
  test->name = expect_name();
  while (skip_operator(".")) test->name += "." + expect_name();
  if (num_conditional_ == 0) require_test(test->name);
  adopt(*test, std::move(node));
  const TokenKind kind = current().kind;
  const bool starts_argument = kind == TokenKind::kName || kind == TokenKind::kString || kind == TokenKind::kInteger ||
                               kind == TokenKind::kFloat || at_operator("[") || at_operator("{");
  if (at_operator("(")) {
    parse_arguments(*test);
  } else if (starts_argument && !at_name("else") && !at_name("or") && !at_name("and")) {
    if (at_name("is")) error("tests cannot be chained with is");
    const DepthGuard guard(*this);
    adopt(*test, parse_postfix(parse_primary()));
  }
  if (!negated) return test;
  ExprPtr expr = make(ExprKind::kNot, test->line);
  adopt(*expr, std::move(test));
  return expr;
}

}  // namespace lk::jinja
