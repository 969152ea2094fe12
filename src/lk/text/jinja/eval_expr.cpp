// SPDX-License-Identifier: Apache-2.0
// Expressions.
#include <algorithm>

#include "lk/text/jinja/eval.h"
#include "lk/text/jinja/eval_guards.h"
#include "lk/text/jinja/filters.h"
#include "lk/text/jinja/ops.h"

namespace lk::jinja {

Value Evaluator::eval(const Expr& expr) {
  const DepthGuard guard(*this);
  line_ = expr.line;
  runtime_.step();
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.constant;
    case ExprKind::kName:
      return eval_name(expr);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return eval_sequence(expr);
    case ExprKind::kDict:
      return eval_dict(expr);
    case ExprKind::kAttribute:
      return get_attribute(runtime_, eval(*expr.args[0]), expr.name);
    case ExprKind::kSubscript:
      return eval_subscript(expr);
    case ExprKind::kSlice:
      break;  // only inside kSubscript
    case ExprKind::kCall:
      return eval_call(expr);
    case ExprKind::kFilter:
      return eval_filter(expr);
    case ExprKind::kTest:
      return eval_test(expr);
    case ExprKind::kNot:
      return boolean(!truthy(eval(*expr.args[0])));
    case ExprKind::kNegative:
      return negative(eval(*expr.args[0]));
    case ExprKind::kPositive:
      return positive(eval(*expr.args[0]));
    case ExprKind::kBinary: {
      const Value left = eval(*expr.args[0]);
      return binary(runtime_, expr.name, left, eval(*expr.args[1]));
    }
    case ExprKind::kConcat:
      return eval_concat(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value left = eval(*expr.args[0]);
      return truthy(left) == (expr.kind == ExprKind::kOr) ? left : eval(*expr.args[1]);
    }
    case ExprKind::kCompare:
      return eval_compare(expr);
    case ExprKind::kConditional:
      return eval_conditional(expr);
  }
  return {};
}

Value Evaluator::eval_name(const Expr& expr) {
  if (const Value* found = find_variable(expr.name); found != nullptr) return *found;
  if (ObjectPtr global = find_global(*this, variables_, expr.name); global != nullptr) {
    return Value::Data(std::move(global));
  }
  return undefined(fmt::format("'{}' is undefined", expr.name));
}

Value Evaluator::eval_sequence(const Expr& expr) {
  SequencePtr out = runtime_.sequence(expr.kind == ExprKind::kList ? SequenceKind::kList : SequenceKind::kTuple);
  for (const ExprPtr& arg : expr.args) out->push(eval(*arg));
  return Value::Data(std::move(out));
}

Value Evaluator::eval_dict(const Expr& expr) {
  DictPtr out = runtime_.dict();
  for (size_t idx = 0; idx < expr.args.size(); idx += 2) {
    Value key = eval(*expr.args[idx]);
    out->set(std::move(key), eval(*expr.args[idx + 1]));
  }
  return Value::Data(std::move(out));
}

Value Evaluator::eval_subscript(const Expr& expr) {
  const Value object = eval(*expr.args[0]);
  const Expr& key = *expr.args[1];
  if (key.kind != ExprKind::kSlice) return get_item(runtime_, object, eval(key));
  Value bounds[3];
  for (size_t idx = 0; idx < 3; ++idx) bounds[idx] = key.args[idx] != nullptr ? eval(*key.args[idx]) : none();
  return slice(runtime_, object, bounds[0], bounds[1], bounds[2]);
}

Arguments Evaluator::eval_arguments(const Expr& expr) {
  Arguments arguments;
  for (size_t idx = 1; idx < expr.args.size(); ++idx) arguments.positional.push_back(eval(*expr.args[idx]));
  if (expr.star != nullptr) {
    const SequencePtr rest = runtime_.to_list(eval(*expr.star));
    for (const Value& value : rest->items()) arguments.positional.push_back(value);
  }
  for (const auto& [name, value] : expr.named) arguments.named.emplace_back(name, eval(*value));
  if (expr.star_star != nullptr) {
    const Value rest = eval(*expr.star_star);
    if (!rest.is_dict()) fail("** needs a mapping, got {}", type_name(rest));
    for (const auto& [key, value] : rest.dict().items()) {
      if (!key.is_string()) fail("argument names must be strings");
      runtime_.step();
      const std::string& name = key.text();
      const auto same = [&](const auto& other) { return other.first == name; };
      if (std::any_of(arguments.named.begin(), arguments.named.end(), same)) {
        fail("the argument {} is given twice", name);
      }
      arguments.named.emplace_back(name, value);
    }
  }
  return arguments;
}

Value Evaluator::eval_call(const Expr& expr) {
  const Value callee = eval(*expr.args[0]);
  const Arguments arguments = eval_arguments(expr);
  line_ = expr.line;
  require_defined(callee);
  if (!callee.is<ObjectPtr>()) fail("a {} cannot be called", type_name(callee));
  return callee.as<ObjectPtr>()->call(runtime_, arguments);
}

Value Evaluator::eval_filter(const Expr& expr) {
  const Value input = expr.args[0] != nullptr ? eval(*expr.args[0]) : *filter_input_;
  const Arguments arguments = eval_arguments(expr);
  line_ = expr.line;
  return apply_filter(runtime_, expr.name, input, arguments);
}

Value Evaluator::filtered(const Expr& filter, const Value& input) {
  const Value* outer = std::exchange(filter_input_, &input);
  Value result = eval(filter);
  filter_input_ = outer;
  return result;
}

Value Evaluator::eval_test(const Expr& expr) {
  const Value input = eval(*expr.args[0]);
  const Arguments arguments = eval_arguments(expr);
  return boolean(apply_test(runtime_, expr.name, input, arguments));
}

Value Evaluator::eval_concat(const Expr& expr) {
  StringBuilder out(runtime_);
  for (const ExprPtr& arg : expr.args) out.append_value(eval(*arg));
  return out.take();
}

bool Evaluator::compare(std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return runtime_.equals(a, b);
  if (op == "!=") return !runtime_.equals(a, b);
  if (op == "<") return runtime_.less_than(a, b);
  if (op == ">") return runtime_.less_than(b, a);
  if (op == "<=") return runtime_.less_than(a, b) || runtime_.equals(a, b);
  if (op == ">=") return runtime_.less_than(b, a) || runtime_.equals(a, b);
  return contains(runtime_, b, a) == (op == "in");
}

Value Evaluator::eval_compare(const Expr& expr) {
  Value left = eval(*expr.args[0]);
  for (size_t idx = 0; idx < expr.operators.size(); ++idx) {
    Value right = eval(*expr.args[idx + 1]);
    if (!compare(expr.operators[idx], left, right)) return boolean(false);
    left = std::move(right);
  }
  return boolean(true);
}

Value Evaluator::eval_conditional(const Expr& expr) {
  if (truthy(eval(*expr.args[1]))) return eval(*expr.args[0]);
  if (expr.args[2] != nullptr) return eval(*expr.args[2]);
  return undefined("an inline if without else was false, and its value was used");
}

}  // namespace lk::jinja
