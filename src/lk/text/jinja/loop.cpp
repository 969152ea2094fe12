// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/loop.h"

namespace lk::jinja {
namespace {

struct LoopMethod : Object {
  LoopMethod(std::shared_ptr<LoopObject> loop_in, bool cycles_in)
      : Object(Kind::kMethod), loop(loop_in), value(Value::Data(ObjectPtr(std::move(loop_in)))), cycles(cycles_in) {}
  Value call(Runtime& runtime, const Arguments& arguments) override {
    return cycles ? loop->cycle(arguments) : loop->changed(runtime, arguments);
  }
  const Value* content() const override { return &value; }
  std::shared_ptr<LoopObject> loop;
  Value value;
  bool cycles;
};

}  // namespace

std::optional<Value> LoopObject::draw() {
  while (true) {
    Value item;
    if (source_.is_sequence()) {
      if (next_ >= source_.items().size()) return std::nullopt;
      item = source_.items()[next_++];
    } else {
      auto& it = static_cast<Iterator&>(*source_.as<ObjectPtr>());
      if (it.next >= it.items().size()) return std::nullopt;
      item = it.items()[it.next++];
    }
    if (stmt_.exprs[1] == nullptr || scope_ == nullptr || evaluator_.loop_accepts(stmt_, scope_, item)) return item;
  }
}

bool LoopObject::peek() {
  if (!drawn_.empty()) return true;
  std::optional<Value> item = draw();
  if (item.has_value()) drawn_.push_back(std::move(*item));
  return !drawn_.empty();
}

bool LoopObject::advance() {
  if (!peek()) return false;
  ++index0_;
  previous_ = std::move(current_);
  current_ = std::move(drawn_.front());
  drawn_.pop_front();
  return true;
}

int64_t LoopObject::length() {
  if (!length_.has_value()) {
    if (source_.is_sequence() && stmt_.exprs[1] == nullptr) {
      length_ = static_cast<int64_t>(source_.items().size());
    } else {
      while (std::optional<Value> item = draw()) drawn_.push_back(std::move(*item));
      length_ = index0_ + 1 + static_cast<int64_t>(drawn_.size());
    }
  }
  return *length_;
}

Value LoopObject::attribute(Runtime& runtime, std::string_view name) {
  if (name == "index") return integer(index0_ + 1);
  if (name == "index0") return integer(index0_);
  if (name == "first") return boolean(index0_ == 0);
  if (name == "last") return boolean(!peek());
  if (name == "length") return integer(length());
  if (name == "revindex") return integer(length() - index0_);
  if (name == "revindex0") return integer(length() - index0_ - 1);
  if (name == "depth") return integer(1);
  if (name == "depth0") return integer(0);
  if (name == "previtem") return index0_ == 0 ? undefined("there is no previous item") : previous_;
  if (name == "nextitem") return peek() ? drawn_.front() : undefined("there is no next item");
  if (name == "cycle" || name == "changed") {
    return Value::Data(ObjectPtr(std::make_shared<LoopMethod>(shared_from_this(), name == "cycle")));
  }
  return Object::attribute(runtime, name);
}

Value LoopObject::call(Runtime&, const Arguments&) {
  fail_unsupported("recursive loops are not supported; call a macro recursively instead");
}

Value LoopObject::cycle(const Arguments& arguments) const {
  if (arguments.positional.empty()) fail("loop.cycle() needs at least one value");
  return arguments.positional[static_cast<size_t>(index0_) % arguments.positional.size()];
}

Value LoopObject::changed(Runtime& runtime, const Arguments& arguments) {
  SequencePtr values = runtime.sequence(SequenceKind::kTuple);
  for (const Value& value : arguments.positional) values->push(value);
  const Value now = Value::Data(std::move(values));
  if (runtime.equals(now, last_changed_)) return boolean(false);
  if (last_changed_.is_undefined()) evaluator_.adopt(shared_from_this());
  last_changed_ = now;
  return boolean(true);
}

}  // namespace lk::jinja
