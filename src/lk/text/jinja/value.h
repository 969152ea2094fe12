// SPDX-License-Identifier: Apache-2.0
// Values of the template language, with Python's semantics: truth, equality, order, hash, str,
// repr. Strings, sequences and dicts do not change once a template can see them (the sandbox
// forbids mutation), so they are shared; each carries its nesting depth and is charged to a Meter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "lk/base/status.h"

namespace lk::jinja {

// How evaluation stops early. Thrown inside the template engine only; ChatTemplate turns it into a
// Status.
struct TemplateError {
  StatusCode code;
  std::string message;
  int line = 0;         // 0: the line being evaluated
  bool raised = false;  // by raise_exception: the message is the template's own, for the caller
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateError{StatusCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}
template <class... Args>
[[noreturn]] void fail_unsupported(fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateError{StatusCode::kUnsupported, fmt::format(format, std::forward<Args>(args)...)};
}
template <class... Args>
[[noreturn]] void fail_limit(fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateError{StatusCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}

// Deeper values are refused: destruction, repr and comparison recurse once per level.
inline constexpr int kMaxValueDepth = 100;
// Larger values are refused. Sharing lets a few steps build a value of 2**100 nodes, which
// comparing would walk.
inline constexpr int64_t kMaxValueWeight = 4 << 20;

// Live bytes of the values of one rendering. Must outlive them.
class Meter {
 public:
  explicit Meter(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  void add(int64_t bytes) {
    live_bytes_ += bytes;
    if (live_bytes_ > limit_bytes_) {
      fail_limit("the template holds more than {} bytes of values; simplify it", limit_bytes_);
    }
  }
  void sub(int64_t bytes) { live_bytes_ -= bytes; }

 private:
  int64_t live_bytes_ = 0;
  int64_t limit_bytes_;
};

class Value;
class Runtime;
struct Arguments;

struct StringData {
  // meter may be null: constants of the template
  StringData(std::string text_in, Meter* meter_in, bool markup_in = false);
  ~StringData();
  StringData(const StringData&) = delete;
  StringData& operator=(const StringData&) = delete;
  std::string text;
  Meter* meter;
  const bool markup;  // jinja/markup.h
};

// What a sequence prints as and which operations it takes; the items are held alike.
enum class SequenceKind { kList, kTuple, kRange, kKeys, kValues, kItems };

class Sequence;
class Dict;

// Everything else: functions, macros, bound methods, namespaces, loops, one-shot iterators.
struct Object {
  enum class Kind { kIterator, kNamespace, kLoop, kFunction, kMethod, kMacro };
  explicit Object(Kind kind_in) : kind(kind_in) {}
  virtual ~Object() = default;
  virtual Value attribute(Runtime& runtime, std::string_view name);  // undefined if there is none
  virtual Value call(Runtime& runtime, const Arguments& arguments);  // fails unless overridden
  // The value it keeps alive, for depth and weight; null if that is none, or held by the evaluator.
  virtual const Value* content() const { return nullptr; }
  const Kind kind;
};

struct Undefined {
  std::shared_ptr<const StringData> hint;  // what to say when it is used; may be null
};
struct None {};

using StringPtr = std::shared_ptr<const StringData>;
using SequencePtr = std::shared_ptr<Sequence>;
using DictPtr = std::shared_ptr<Dict>;
using ObjectPtr = std::shared_ptr<Object>;

class Value {
 public:
  using Data = std::variant<Undefined, None, bool, int64_t, double, StringPtr, SequencePtr, DictPtr, ObjectPtr>;
  Value() = default;                            // undefined
  Value(Data data) : data_(std::move(data)) {}  // NOLINT(google-explicit-constructor)

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  template <class T>
  const T& as() const {
    return *std::get_if<T>(&data_);
  }  // Requires: is<T>()

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_string() const { return is<StringPtr>(); }
  bool is_dict() const { return is<DictPtr>(); }
  bool is_sequence() const { return is<SequencePtr>(); }
  bool is_sequence(SequenceKind kind) const;
  bool is_integral() const { return is<int64_t>() || is<bool>(); }  // bool is an int in Python
  bool is_number() const { return is_integral() || is<double>(); }
  bool is_object(Object::Kind kind) const { return is<ObjectPtr>() && as<ObjectPtr>()->kind == kind; }

  const std::string& text() const { return as<StringPtr>()->text; }
  bool is_markup() const { return is_string() && as<StringPtr>()->markup; }
  int64_t integer() const { return is<bool>() ? as<bool>() : as<int64_t>(); }
  double number() const { return is<double>() ? as<double>() : static_cast<double>(integer()); }
  const std::vector<Value>& items() const;
  const Dict& dict() const { return *as<DictPtr>(); }
  int depth() const;
  int64_t weight() const;  // nodes a walk visits, 64 bytes of text counting as one

 private:
  Data data_;
};

class Sequence {
 public:
  Sequence(SequenceKind kind_in, Meter* meter) : kind(kind_in), meter_(meter) {}
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;
  void push(Value value);
  const std::vector<Value>& items() const { return items_; }
  int depth() const { return depth_; }
  int64_t weight() const { return weight_; }

  const SequenceKind kind;
  int64_t range_start = 0, range_stop = 0, range_step = 1;  // kRange: for printing
  bool is_group = false;                                    // an entry of groupby: .grouper and .list

 private:
  std::vector<Value> items_;
  Meter* meter_;
  int64_t charged_bytes_ = 0;
  int depth_ = 1;
  int64_t weight_ = 1;
};

// Insertion-ordered, keys equal as in Python (1 == 1.0 == True).
class Dict {
 public:
  explicit Dict(Meter* meter) : meter_(meter) {}
  ~Dict();
  Dict(const Dict&) = delete;
  Dict& operator=(const Dict&) = delete;
  void set(Value key, Value value);  // TemplateError when the key is unhashable
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  int depth() const { return depth_; }
  int64_t weight() const { return weight_; }
  void clear() { items_.clear(), index_.clear(); }

 private:
  const Value* find_hashed(size_t hash, const Value& key) const;
  std::vector<std::pair<Value, Value>> items_;
  std::unordered_multimap<size_t, size_t> index_;  // hash -> position
  Meter* meter_;
  int64_t charged_bytes_ = 0;
  int depth_ = 1;
  int64_t weight_ = 1;
};

inline bool Value::is_sequence(SequenceKind kind) const { return is_sequence() && as<SequencePtr>()->kind == kind; }
inline const std::vector<Value>& Value::items() const { return as<SequencePtr>()->items(); }

// A generator of Python: can be walked once, has no length and is always true.
struct Iterator : Object {
  Iterator() : Object(Kind::kIterator) {}
  const Value* content() const override { return &source; }
  const std::vector<Value>& items() const { return source.items(); }
  Value source;  // a sequence
  size_t next = 0;
};

struct Namespace : Object {
  explicit Namespace(Meter* meter) : Object(Kind::kNamespace), attributes(meter) {}
  Value attribute(Runtime& runtime, std::string_view name) override;
  Dict attributes;
};

Value constant_string(std::string text);
inline Value integer(int64_t x) { return Value::Data(x); }
inline Value boolean(bool x) { return Value::Data(x); }
inline Value none() { return Value::Data(None{}); }
Value undefined(std::string hint);

bool truthy(const Value& value);
bool equal(const Value& a, const Value& b);
bool less(const Value& a, const Value& b);  // TemplateError when Python cannot order them
size_t hash(const Value& value);            // TemplateError when unhashable
std::string type_name(const Value& value);  // as Python names it: "str", "NoneType"
[[noreturn]] void fail_undefined(const Value& value);
// Fails for undefined, as any operation on it does.
inline void require_defined(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
}

// str(value) and repr(value), refused past limit_bytes.
void append_str(std::string& out, const Value& value, size_t limit_bytes);
void append_repr(std::string& out, const Value& value, size_t limit_bytes);
std::string float_repr(double x);

}  // namespace lk::jinja
