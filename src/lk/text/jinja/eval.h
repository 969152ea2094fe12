// SPDX-License-Identifier: Apache-2.0
// Evaluates a template. One Evaluator serves one rendering.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/text/jinja/ast.h"
#include "lk/text/jinja/runtime.h"

namespace lk::jinja {

// Nested calls of eval and exec. A level costs about half a kilobyte of stack, some more under
// sanitizers.
inline constexpr int kMaxEvalDepth = 1000;

// Variables of a block. Names point into the syntax tree.
struct Scope {
  std::vector<std::pair<std::string_view, Value>> variables;
  std::shared_ptr<Scope> parent;
};
using ScopePtr = std::shared_ptr<Scope>;

class LoopObject;

class Evaluator {
 public:
  Evaluator(Runtime& runtime, const Dict& variables);
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  std::string run(const Block& body);
  // Bytes of what run() returned that {% generation %} blocks printed, in order. Blocks inside a macro, a filter or a
  // set block, whose text may go anywhere, are not among them.
  const std::vector<std::pair<size_t, size_t>>& generations() const { return generations_; }
  int line() const { return line_; }  // being evaluated

  // For macros, loops and namespaces, whose values refer back to the evaluator.
  Value call_macro(const Macro& macro, const ScopePtr& scope, const Arguments& arguments);
  bool loop_accepts(const Stmt& loop, const ScopePtr& scope, const Value& item);
  // Values that can hold each other in a cycle; emptied at the end.
  void adopt(std::shared_ptr<Namespace> object);
  void adopt(std::shared_ptr<LoopObject> loop);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class DepthGuard;
  class ScopeGuard;

  Flow exec_block(const Block& body);
  Flow exec(const Stmt& stmt);
  Flow exec_if(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt);
  void exec_set_block(const Stmt& stmt);
  void exec_call_block(const Stmt& stmt);
  void exec_macro(const Stmt& stmt);
  Flow exec_generation(const Block& body);
  Flow exec_scoped(const Block& body);
  Value capture(const Block& body);  // what the block prints, in a scope of its own
  void print(std::string_view text);
  void print_value(const Value& value);

  Value eval(const Expr& expr);
  Value eval_name(const Expr& expr);
  Value eval_sequence(const Expr& expr);
  Value eval_dict(const Expr& expr);
  Value eval_subscript(const Expr& expr);
  Value eval_call(const Expr& expr);
  Value eval_filter(const Expr& expr);
  Value eval_test(const Expr& expr);
  Value eval_concat(const Expr& expr);
  Value eval_compare(const Expr& expr);
  bool compare(std::string_view op, const Value& a, const Value& b);
  Value eval_conditional(const Expr& expr);
  Arguments eval_arguments(const Expr& expr);
  Value filtered(const Expr& filter, const Value& input);

  const Value* find_variable(std::string_view name) const;
  void set_variable(std::string_view name, Value value);
  void assign(const Target& target, const Value& value);
  Value make_macro(const Macro& macro);

  Runtime& runtime_;
  const Dict& variables_;
  ScopePtr scope_;
  std::string output_;
  std::vector<std::pair<size_t, size_t>> generations_;
  std::string* out_ = nullptr;           // output_, or the text of what is captured
  const Value* filter_input_ = nullptr;  // of the innermost filter or set block
  int line_ = 0;
  int depth_ = 0;
  int64_t macro_depth_ = 0;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<LoopObject>> loops_;
  std::vector<ScopePtr> captured_scopes_;  // that macros refer to
};

// The functions a template can call by name; null when there is none.
ObjectPtr find_global(Evaluator& evaluator, const Dict& variables, std::string_view name);

}  // namespace lk::jinja
