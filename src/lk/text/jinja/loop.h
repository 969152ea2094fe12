// SPDX-License-Identifier: Apache-2.0
// The `loop` variable, and the walk over the items of a for tag. Items are drawn one at a time, as
// jinja2 does: the `if` of the tag sees what earlier iterations did to a namespace.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "lk/text/jinja/eval.h"

namespace lk::jinja {

class LoopObject : public Object, public std::enable_shared_from_this<LoopObject> {
 public:
  // `source` is a sequence or an iterator.
  LoopObject(Evaluator& evaluator, const Stmt& stmt, ScopePtr scope, Value source)
      : Object(Kind::kLoop), evaluator_(evaluator), stmt_(stmt), scope_(std::move(scope)), source_(std::move(source)) {}

  bool advance();  // to the next item; false after the last
  const Value& current() const { return current_; }
  void finish() { scope_.reset(); }  // the loop is over: its filter no longer applies
  void clear() { last_changed_ = Value(); }

  Value attribute(Runtime& runtime, std::string_view name) override;
  Value call(Runtime& runtime, const Arguments& arguments) override;
  const Value* content() const override { return &source_; }
  Value cycle(const Arguments& arguments) const;
  Value changed(Runtime& runtime, const Arguments& arguments);

 private:
  std::optional<Value> draw();
  bool peek();
  int64_t length();

  Evaluator& evaluator_;
  const Stmt& stmt_;
  ScopePtr scope_;
  Value source_;
  size_t next_ = 0;
  std::deque<Value> drawn_;  // ahead of the current item
  Value current_, previous_, last_changed_;
  int64_t index0_ = -1;
  std::optional<int64_t> length_;
};

}  // namespace lk::jinja
