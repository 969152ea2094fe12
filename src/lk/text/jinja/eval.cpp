// SPDX-License-Identifier: Apache-2.0
// Statements and scopes. Expressions are in jinja_eval_expr.cpp.
#include "lk/text/jinja/eval.h"

#include <algorithm>

#include "lk/text/jinja/eval_guards.h"
#include "lk/text/jinja/filters.h"
#include "lk/text/jinja/loop.h"
#include "lk/text/jinja/ops.h"

namespace lk::jinja {
namespace {

constexpr int64_t kCapturedScopeBytes = 256;

struct MacroObject : Object {
  MacroObject(Evaluator& evaluator_in, const Macro& macro_in, ScopePtr scope_in)
      : Object(Kind::kMacro), evaluator(evaluator_in), macro(macro_in), scope(std::move(scope_in)) {}
  Value call(Runtime&, const Arguments& arguments) override { return evaluator.call_macro(macro, scope, arguments); }
  Value attribute(Runtime& runtime, std::string_view name) override {
    return name == "name" ? runtime.string(macro.name) : Object::attribute(runtime, name);
  }
  Evaluator& evaluator;
  const Macro& macro;
  ScopePtr scope;
};

}  // namespace

Evaluator::Evaluator(Runtime& runtime, const Dict& variables)
    : runtime_(runtime), variables_(variables), scope_(std::make_shared<Scope>()) {}

// Cycles run only through these; emptying each while all are held also keeps destruction shallow.
Evaluator::~Evaluator() {
  scope_->variables.clear();
  for (const auto& object : namespaces_) object->attributes.clear();
  for (const auto& loop : loops_) loop->clear();
  for (const auto& scope : captured_scopes_) scope->variables.clear();
}

std::string Evaluator::run(const Block& body) {
  out_ = &output_;
  exec_block(body);
  return std::move(output_);
}

void Evaluator::adopt(std::shared_ptr<Namespace> object) {
  runtime_.meter()->add(kCapturedScopeBytes);
  namespaces_.push_back(std::move(object));
}
void Evaluator::adopt(std::shared_ptr<LoopObject> loop) {
  runtime_.meter()->add(kCapturedScopeBytes);
  loops_.push_back(std::move(loop));
}

void Evaluator::print(std::string_view text) {
  runtime_.step(static_cast<int64_t>(text.size()));
  if (out_->size() + text.size() > runtime_.max_string_bytes()) {
    fail_limit("the output is longer than {} bytes; shorten the request", runtime_.max_string_bytes());
  }
  *out_ += text;
}

void Evaluator::print_value(const Value& value) {
  if (value.is_string()) {
    print(value.text());
  } else {
    print(runtime_.str(value));
  }
}

Evaluator::Flow Evaluator::exec_block(const Block& body) {
  for (const auto& stmt : body) {
    const Flow flow = exec(*stmt);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::exec(const Stmt& stmt) {
  const DepthGuard guard(*this);
  line_ = stmt.line;
  runtime_.step();
  switch (stmt.kind) {
    case StmtKind::kText:
      print(stmt.text);
      break;
    case StmtKind::kPrint:
      for (const ExprPtr& expr : stmt.exprs) print_value(eval(*expr));
      break;
    case StmtKind::kIf:
      return exec_if(stmt);
    case StmtKind::kFor:
      return exec_for(stmt);
    case StmtKind::kSet:
      assign(stmt.targets[0], eval(*stmt.exprs[0]));
      break;
    case StmtKind::kSetBlock:
      exec_set_block(stmt);
      break;
    case StmtKind::kWith: {
      std::vector<Value> values;  // in the outer scope: a target does not see the ones before it
      for (const ExprPtr& expr : stmt.exprs) values.push_back(eval(*expr));
      const ScopeGuard scope(*this);
      for (size_t idx = 0; idx < values.size(); ++idx) assign(stmt.targets[idx], values[idx]);
      return exec_block(stmt.bodies[0]);
    }
    case StmtKind::kMacro:
      exec_macro(stmt);
      break;
    case StmtKind::kCallBlock:
      exec_call_block(stmt);
      break;
    case StmtKind::kFilterBlock:
      print_value(filtered(*stmt.exprs[0], capture(stmt.bodies[0])));
      break;
    case StmtKind::kGeneration:
      return exec_generation(stmt.bodies[0]);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::exec_scoped(const Block& body) {
  const ScopeGuard scope(*this);
  return exec_block(body);
}

Evaluator::Flow Evaluator::exec_generation(const Block& body) {
  const size_t begin = out_->size();
  const Flow flow = exec_scoped(body);
  if (out_ == &output_) generations_.emplace_back(begin, output_.size());
  return flow;
}

Evaluator::Flow Evaluator::exec_if(const Stmt& stmt) {
  for (size_t idx = 0; idx < stmt.exprs.size(); ++idx) {
    if (truthy(eval(*stmt.exprs[idx]))) return exec_block(stmt.bodies[idx]);
  }
  return stmt.bodies.size() > stmt.exprs.size() ? exec_block(stmt.bodies.back()) : Flow::kNext;
}

Evaluator::Flow Evaluator::exec_for(const Stmt& stmt) {
  Value source = eval(*stmt.exprs[0]);
  if (!source.is_sequence() && !source.is_object(Object::Kind::kIterator)) {
    source = Value::Data(runtime_.to_list(source));
  }
  const auto loop = std::make_shared<LoopObject>(*this, stmt, scope_, std::move(source));
  bool completed = false;  // an iteration; as in jinja2, break and continue leave the else tag in force
  while (loop->advance()) {
    runtime_.step();
    const ScopeGuard scope(*this);
    set_variable("loop", Value::Data(ObjectPtr(loop)));
    assign(stmt.targets[0], loop->current());
    const Flow flow = exec_block(stmt.bodies[0]);
    completed = completed || flow == Flow::kNext;
    if (flow == Flow::kBreak) break;
  }
  loop->finish();
  return completed || stmt.bodies.size() < 2 ? Flow::kNext : exec_scoped(stmt.bodies[1]);
}

bool Evaluator::loop_accepts(const Stmt& loop, const ScopePtr& scope, const Value& item) {
  runtime_.step();
  const ScopeGuard guard(*this, scope);
  assign(loop.targets[0], item);
  return truthy(eval(*loop.exprs[1]));
}

Value Evaluator::capture(const Block& body) {
  std::string text;
  {
    const CaptureGuard guard(out_, text);
    const ScopeGuard scope(*this);
    exec_block(body);
  }
  return runtime_.string(std::move(text));
}

void Evaluator::exec_set_block(const Stmt& stmt) {
  Value value = capture(stmt.bodies[0]);
  if (stmt.exprs[0] != nullptr) value = filtered(*stmt.exprs[0], value);
  assign(stmt.targets[0], value);
}

Value Evaluator::make_macro(const Macro& macro) {
  runtime_.meter()->add(kCapturedScopeBytes);
  captured_scopes_.push_back(scope_);
  return Value::Data(ObjectPtr(std::make_shared<MacroObject>(*this, macro, scope_)));
}

void Evaluator::exec_macro(const Stmt& stmt) { set_variable(stmt.macro->name, make_macro(*stmt.macro)); }

void Evaluator::exec_call_block(const Stmt& stmt) {
  const Expr& call = *stmt.exprs[0];
  const Value callee = eval(*call.args[0]);
  Arguments arguments = eval_arguments(call);
  arguments.named.emplace_back("caller", make_macro(*stmt.macro));
  require_defined(callee);
  if (!callee.is<ObjectPtr>()) fail("a {} cannot be called", type_name(callee));
  print_value(callee.as<ObjectPtr>()->call(runtime_, arguments));
}

Value Evaluator::call_macro(const Macro& macro, const ScopePtr& scope, const Arguments& arguments) {
  const CountGuard depth(macro_depth_);
  if (macro_depth_ > runtime_.limits().max_depth) {
    fail_limit("macro calls nest more than {} deep; end the recursion", runtime_.limits().max_depth);
  }
  runtime_.step();
  std::string text;
  {
    const CaptureGuard capture(out_, text);
    const ScopeGuard guard(*this, scope);
    const size_t num_parameters = macro.parameters.size();
    std::vector<const Value*> bound(num_parameters, nullptr);
    for (size_t idx = 0; idx < std::min(num_parameters, arguments.positional.size()); ++idx) {
      bound[idx] = &arguments.positional[idx];
    }
    DictPtr kwargs = runtime_.dict();
    Value caller = undefined("no caller is defined; use the macro in a call tag");
    for (const auto& [name, value] : arguments.named) {
      const auto it = std::find(macro.parameters.begin(), macro.parameters.end(), name);
      const auto idx = static_cast<size_t>(it - macro.parameters.begin());
      if (idx < num_parameters && bound[idx] == nullptr) {
        bound[idx] = &value;
      } else if (name == "caller" && macro.takes_caller) {
        caller = value;
      } else {
        if (!macro.takes_kwargs) fail("the macro {} has no parameter {} left to fill", macro.name, name);
        kwargs->set(runtime_.string(name), value);
      }
    }
    if (arguments.positional.size() > num_parameters && !macro.takes_varargs) {
      fail("the macro {} takes at most {} arguments, got {}", macro.name, num_parameters, arguments.positional.size());
    }
    if (macro.takes_varargs) {
      SequencePtr rest = runtime_.sequence(SequenceKind::kTuple);
      for (size_t idx = num_parameters; idx < arguments.positional.size(); ++idx) rest->push(arguments.positional[idx]);
      set_variable("varargs", Value::Data(std::move(rest)));
    }
    if (macro.takes_kwargs) set_variable("kwargs", Value::Data(std::move(kwargs)));
    if (macro.takes_caller) set_variable("caller", caller);
    const size_t first_default = num_parameters - macro.defaults.size();
    for (size_t idx = 0; idx < num_parameters; ++idx) {
      Value value = undefined(fmt::format("parameter '{}' was not provided", macro.parameters[idx]));
      if (bound[idx] != nullptr) {
        value = *bound[idx];
      } else if (idx >= first_default) {
        value = eval(*macro.defaults[idx - first_default]);
      }
      set_variable(macro.parameters[idx], std::move(value));
    }
    exec_block(macro.body);
  }
  return runtime_.string(std::move(text));
}

const Value* Evaluator::find_variable(std::string_view name) const {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [other, value] : scope->variables) {
      if (other == name) return &value;
    }
  }
  return variables_.find(name);
}

void Evaluator::set_variable(std::string_view name, Value value) {
  for (auto& [other, old] : scope_->variables) {
    if (other == name) {
      old = std::move(value);
      return;
    }
  }
  scope_->variables.emplace_back(name, std::move(value));
}

void Evaluator::assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const SequencePtr items = runtime_.to_list(value);
    if (value.is_undefined()) require_defined(value);
    if (items->items().size() != target.parts.size()) {
      fail("cannot unpack {} values into {} names", items->items().size(), target.parts.size());
    }
    for (size_t idx = 0; idx < target.parts.size(); ++idx) assign(target.parts[idx], items->items()[idx]);
    return;
  }
  if (target.attribute.empty()) {
    set_variable(target.name, value);
    return;
  }
  const Value* object = find_variable(target.name);
  if (object == nullptr || !object->is_object(Object::Kind::kNamespace)) {
    fail("cannot set {}.{}: {} is not a namespace()", target.name, target.attribute, target.name);
  }
  if (target.attribute.starts_with('_')) fail("namespace attributes cannot begin with _");
  auto& attributes = static_cast<Namespace&>(*object->as<ObjectPtr>()).attributes;
  const Value kept = value;  // the old attribute may hold the last reference to `object`
  attributes.set(runtime_.string(target.attribute), kept);
}

}  // namespace lk::jinja
