// SPDX-License-Identifier: Apache-2.0
// The syntax tree of a template. Immutable after parsing; each node knows its line.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lk/text/jinja/value.h"

namespace lk::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kConstant,  // constant
  kName,      // name
  kList,
  kTuple,      // args
  kDict,       // args: key, value, key, value, ...
  kAttribute,  // args[0].name
  kSubscript,  // args[0][args[1]]
  kSlice,      // start, stop, step in args, null when absent; only as args[1] of kSubscript
  kCall,       // args[0](args[1...], named, *star, **star_star)
  kFilter,     // args[0] | name(args[1...], ...); args[0] null: the body of a filter or set block
  kTest,       // args[0] is name(args[1...], ...)
  kNot,
  kNegative,
  kPositive,  // args[0]
  kBinary,    // args[0] name args[1]: + - * / // % **
  kConcat,    // args joined by ~
  kAnd,
  kOr,           // args[0], args[1]
  kCompare,      // args[0] operators[0] args[1] operators[1] args[2] ...
  kConditional,  // args[0] if args[1] else args[2]; args[2] may be null
};

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  int line = 0;
  int depth = 1;  // of the tree below: evaluation recurses this far
  std::string name;
  Value constant;
  std::vector<ExprPtr> args;
  std::vector<std::string> operators;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, star_star;
};

// What `for` and `set` assign to: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;  // not empty: name.attribute
  std::vector<Target> parts;
  bool is_tuple = false;
  int line = 0;
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

struct Macro {  // also the body of a call block
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Block body;
  bool takes_varargs = false, takes_kwargs = false, takes_caller = false;
};

enum class StmtKind {
  kText,         // text
  kPrint,        // exprs
  kIf,           // exprs[k] guards bodies[k]; one more body is the else
  kFor,          // target in exprs[0] if exprs[1] (may be null); bodies: loop, else
  kSet,          // target = exprs[0]
  kSetBlock,     // target = bodies[0] through the filter exprs[0] (may be null)
  kWith,         // targets = exprs, around bodies[0]
  kMacro,        // macro
  kCallBlock,    // exprs[0] is the call, macro the body
  kFilterBlock,  // exprs[0] over bodies[0]
  kGeneration,   // bodies[0]
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  std::string text;
  std::vector<ExprPtr> exprs;
  std::vector<Block> bodies;
  std::vector<Target> targets;
  std::unique_ptr<Macro> macro;
};

}  // namespace lk::jinja
