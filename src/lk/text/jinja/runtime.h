// SPDX-License-Identifier: Apache-2.0
// The budget of one rendering (steps, time, bytes) and the only way to build values under it.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/text/chat_template.h"
#include "lk/text/jinja/value.h"

namespace lk::jinja {

class Runtime {
 public:
  explicit Runtime(const TemplateLimits& limits)
      : limits_(limits),
        meter_(4 * limits.max_output_bytes + (int64_t{32} << 20)),
        deadline_(std::chrono::steady_clock::now() + limits.max_time) {}

  // Allows as much work again for every node of the input as templates spend on it, so that a long conversation is not
  // a template that never ends.
  void allow_input(int64_t nodes) {
    limits_.max_steps += std::min(nodes * kStepsPerNode, INT64_MAX - limits_.max_steps);
    deadline_ += std::chrono::microseconds(nodes * kMicrosPerNode);
  }
  // One unit of work that touches about `work` bytes. Long work is charged before it is done.
  void step(int64_t work = 0) {
    if (++num_steps_ > limits_.max_steps) {
      fail_limit("the template took more than {} steps; simplify it", limits_.max_steps);
    }
    work_since_check_ += work + kStepWork;
    if (work_since_check_ > kCheckWork) check_time();
  }
  void step_items(size_t num_items) { step(static_cast<int64_t>(num_items) * 16); }

  size_t max_string_bytes() const { return static_cast<size_t>(limits_.max_output_bytes); }
  const TemplateLimits& limits() const { return limits_; }
  Meter* meter() { return &meter_; }

  Value string(std::string text) {
    check_string(text.size());
    step(static_cast<int64_t>(text.size()));
    return Value::Data(StringPtr(std::make_shared<StringData>(std::move(text), &meter_)));
  }
  Value markup(std::string text) {
    check_string(text.size());
    step(static_cast<int64_t>(text.size()));
    return Value::Data(StringPtr(std::make_shared<StringData>(std::move(text), &meter_, true)));
  }
  Value string(std::string_view text) { return string(std::string(text)); }
  Value string(const char* text) { return string(std::string(text)); }
  SequencePtr sequence(SequenceKind kind = SequenceKind::kList) {
    step();
    return std::make_shared<Sequence>(kind, &meter_);
  }
  DictPtr dict() {
    step();
    return std::make_shared<Dict>(&meter_);
  }
  Value iterator(SequencePtr source) {
    auto object = std::make_shared<Iterator>();
    object->source = Value::Data(std::move(source));
    return Value::Data(ObjectPtr(std::move(object)));
  }

  void check_string(size_t bytes) const {
    if (bytes > max_string_bytes()) {
      fail_limit("a string is longer than {} bytes; simplify the template", max_string_bytes());
    }
  }
  std::string str(const Value& value) {
    std::string out;
    append_str(out, value, max_string_bytes());
    step(static_cast<int64_t>(out.size()));
    return out;
  }

  // Every item of an iterable: list, tuple, view, dict keys, characters, what is left of a
  // generator.
  SequencePtr to_list(const Value& value, SequenceKind kind = SequenceKind::kList);
  // Comparisons, charged for the size of the values.
  bool equals(const Value& a, const Value& b) {
    step(std::min(a.weight(), b.weight()) * 16);
    return equal(a, b);
  }
  bool less_than(const Value& a, const Value& b) {
    step(std::min(a.weight(), b.weight()) * 16);
    return less(a, b);
  }

 private:
  static constexpr int64_t kStepsPerNode = 256;
  static constexpr int64_t kMicrosPerNode = 10;
  static constexpr int64_t kStepWork = 64;
  static constexpr int64_t kCheckWork = 64 << 10;  // between two looks at the clock: about 20 us
  void check_time() {
    work_since_check_ = 0;
    if (std::chrono::steady_clock::now() > deadline_) {
      throw TemplateError{StatusCode::kInvalidArgument,
                          fmt::format("the template ran longer than {} ms", limits_.max_time.count())};
    }
  }

  TemplateLimits limits_;
  Meter meter_;
  std::chrono::steady_clock::time_point deadline_;
  int64_t num_steps_ = 0;
  int64_t work_since_check_ = 0;
};

// A string under construction that never grows past the limit.
class StringBuilder {
 public:
  explicit StringBuilder(Runtime& runtime) : runtime_(runtime) {}
  void append(std::string_view text) {
    runtime_.check_string(text_.size() + text.size());
    text_ += text;
  }
  void append_fill(int64_t count, std::string_view fill = " ") {
    if (count <= 0) return;
    if (static_cast<size_t>(count) > runtime_.max_string_bytes()) runtime_.check_string(SIZE_MAX);
    runtime_.check_string(text_.size() + static_cast<size_t>(count) * fill.size());
    for (; count > 0; --count) text_ += fill;
  }
  void append_value(const Value& value) { append_str(text_, value, runtime_.max_string_bytes()); }
  size_t size() const { return text_.size(); }
  Value take() { return runtime_.string(std::move(text_)); }
  std::string take_text() { return std::move(text_); }

 private:
  Runtime& runtime_;
  std::string text_;
};

// The arguments of a call, bound to parameter names as Python does.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // One value per name; a missing one is std::nullopt-like: has() is false. `function` is for
  // messages.
  std::vector<const Value*> bind(std::string_view function, std::initializer_list<std::string_view> names,
                                 size_t num_required = 0) const;
};

}  // namespace lk::jinja
