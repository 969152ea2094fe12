// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

constexpr int64_t kStringOverheadBytes = 64;  // control block, StringData, allocator
constexpr int64_t kItemBytes = sizeof(Value);
constexpr int64_t kEntryBytes = 2 * sizeof(Value) + 48;  // 48: the node of the hash index
constexpr size_t kLinearDictSize = 8;                    // below, comparing keys beats hashing

void check_depth(int depth) {
  if (depth > kMaxValueDepth) fail_limit("a value is nested more than {} levels deep", kMaxValueDepth);
}

void check_weight(int64_t weight) {
  if (weight > kMaxValueWeight) fail_limit("a value has more than {} parts", kMaxValueWeight);
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), equal);
}

bool equal_dicts(const Dict& a, const Dict& b) {
  if (a.items().size() != b.items().size()) return false;
  for (const auto& [key, value] : a.items()) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(value, *other)) return false;
  }
  return true;
}

bool equal_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
  if (a.is<double>() && b.is<double>()) return a.as<double>() == b.as<double>();
  // Exact: 2**53 + 1 is not equal to the float it would round to.
  const double x = a.is<double>() ? a.as<double>() : b.as<double>();
  const int64_t k = a.is<double>() ? b.integer() : a.integer();
  return x >= -0x1p63 && x < 0x1p63 && std::floor(x) == x && static_cast<int64_t>(x) == k;
}

bool less_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer();
  return a.number() < b.number();
}

void append_string_repr(std::string& out, std::string_view text) {
  const bool double_quotes = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  out += quote;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, pos - begin);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out += quote;
}

// repr of nested values; `depth` also bounds chains of namespaces, which Sequence::depth does not
// see.
class ReprWriter {
 public:
  ReprWriter(std::string& out, size_t limit_bytes) : out_(out), limit_bytes_(limit_bytes) {}

  void write(const Value& value, int depth) {
    check_depth(depth);
    if (value.is_undefined()) {
      out_ += "Undefined";
    } else if (value.is_none()) {
      out_ += "None";
    } else if (value.is<bool>()) {
      out_ += value.as<bool>() ? "True" : "False";
    } else if (value.is<int64_t>()) {
      out_ += std::to_string(value.as<int64_t>());
    } else if (value.is<double>()) {
      out_ += float_repr(value.as<double>());
    } else if (value.is_string()) {
      if (value.is_markup()) out_ += "Markup(";
      append_string_repr(out_, value.text());
      if (value.is_markup()) out_ += ")";
    } else if (value.is_sequence()) {
      write_sequence(*value.as<SequencePtr>(), depth);
    } else if (value.is_dict()) {
      write_dict(value.dict(), depth);
    } else {
      write_object(*value.as<ObjectPtr>(), depth);
    }
    if (out_.size() > limit_bytes_) fail_limit("a printed value is longer than {} bytes", limit_bytes_);
  }

 private:
  void write_sequence(const Sequence& sequence, int depth) {
    switch (sequence.kind) {
      case SequenceKind::kRange:
        out_ += fmt::format("range({}, {}", sequence.range_start, sequence.range_stop);
        if (sequence.range_step != 1) out_ += fmt::format(", {}", sequence.range_step);
        out_ += ')';
        return;
      case SequenceKind::kTuple:
        out_ += '(';
        write_items(sequence.items(), depth);
        out_ += sequence.items().size() == 1 ? ",)" : ")";
        return;
      case SequenceKind::kKeys:
        out_ += "dict_keys(";
        break;
      case SequenceKind::kValues:
        out_ += "dict_values(";
        break;
      case SequenceKind::kItems:
        out_ += "dict_items(";
        break;
      case SequenceKind::kList:
        break;
    }
    out_ += '[';
    write_items(sequence.items(), depth);
    out_ += sequence.kind == SequenceKind::kList ? "]" : "])";
  }

  void write_items(const std::vector<Value>& items, int depth) {
    for (size_t idx = 0; idx < items.size(); ++idx) {
      if (idx > 0) out_ += ", ";
      write(items[idx], depth + 1);
    }
  }

  void write_dict(const Dict& dict, int depth) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, value] : dict.items()) {
      if (!first) out_ += ", ";
      first = false;
      write(key, depth + 1);
      out_ += ": ";
      write(value, depth + 1);
    }
    out_ += '}';
  }

  void write_object(const Object& object, int depth) {
    if (object.kind != Object::Kind::kNamespace) {
      // Python prints an address here, which no template can mean.
      fail("cannot print a {}; call it, or turn it into a list first (| list)",
           object.kind == Object::Kind::kIterator ? "generator" : "function or loop object");
    }
    out_ += "<Namespace ";
    write_dict(static_cast<const Namespace&>(object).attributes, depth);
    out_ += '>';
  }

  std::string& out_;
  size_t limit_bytes_;
};

}  // namespace

StringData::StringData(std::string text_in, Meter* meter_in, bool markup_in)
    : text(std::move(text_in)), meter(meter_in), markup(markup_in) {
  if (meter != nullptr) meter->add(kStringOverheadBytes + static_cast<int64_t>(text.size()));
}
StringData::~StringData() {
  if (meter != nullptr) meter->sub(kStringOverheadBytes + static_cast<int64_t>(text.size()));
}

Sequence::~Sequence() {
  if (meter_ != nullptr) meter_->sub(charged_bytes_);
}
void Sequence::push(Value value) {
  depth_ = std::max(depth_, value.depth() + 1);
  weight_ += value.weight();
  check_depth(depth_);
  check_weight(weight_);
  charged_bytes_ += kItemBytes;
  if (meter_ != nullptr) meter_->add(kItemBytes);
  items_.push_back(std::move(value));
}

Dict::~Dict() {
  if (meter_ != nullptr) meter_->sub(charged_bytes_);
}
void Dict::set(Value key, Value value) {
  const size_t key_hash = hash(key);
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  weight_ += key.weight() + value.weight();
  check_depth(depth_);
  check_weight(weight_);
  if (const Value* found = find_hashed(key_hash, key); found != nullptr) {
    *const_cast<Value*>(found) = std::move(value);
    return;
  }
  charged_bytes_ += kEntryBytes;
  if (meter_ != nullptr) meter_->add(kEntryBytes);
  index_.emplace(key_hash, items_.size());
  items_.emplace_back(std::move(key), std::move(value));
}
const Value* Dict::find(const Value& key) const { return find_hashed(hash(key), key); }
const Value* Dict::find_hashed(size_t key_hash, const Value& key) const {
  for (auto [it, end] = index_.equal_range(key_hash); it != end; ++it) {
    if (equal(items_[it->second].first, key)) return &items_[it->second].second;
  }
  return nullptr;
}
const Value* Dict::find(std::string_view key) const {
  const auto matches = [&](const Value& other) { return other.is_string() && other.text() == key; };
  if (items_.size() <= kLinearDictSize) {
    for (const auto& [other, value] : items_) {
      if (matches(other)) return &value;
    }
    return nullptr;
  }
  for (auto [it, end] = index_.equal_range(std::hash<std::string_view>{}(key)); it != end; ++it) {
    if (matches(items_[it->second].first)) return &items_[it->second].second;
  }
  return nullptr;
}

Value Object::attribute(Runtime&, std::string_view name) {
  return undefined(fmt::format("a {} has no attribute {}", type_name(Value::Data(ObjectPtr(ObjectPtr(), this))), name));
}
Value Object::call(Runtime&, const Arguments&) {
  fail("a {} cannot be called", type_name(Value::Data(ObjectPtr(ObjectPtr(), this))));
}
Value Namespace::attribute(Runtime& runtime, std::string_view name) {
  const Value* found = attributes.find(name);
  return found != nullptr ? *found : Object::attribute(runtime, name);
}

int Value::depth() const {
  if (is_sequence()) return as<SequencePtr>()->depth();
  if (is_dict()) return as<DictPtr>()->depth();
  if (is<ObjectPtr>()) {
    const Value* content = as<ObjectPtr>()->content();
    return content != nullptr ? content->depth() + 1 : 0;
  }
  return 0;
}

int64_t Value::weight() const {
  if (is_string()) return 1 + static_cast<int64_t>(text().size() / 64);
  if (is_sequence()) return as<SequencePtr>()->weight();
  if (is_dict()) return as<DictPtr>()->weight();
  if (is<ObjectPtr>()) {
    const Value* content = as<ObjectPtr>()->content();
    return content != nullptr ? content->weight() : 1;
  }
  return 1;
}

Value constant_string(std::string text) {
  return Value::Data(StringPtr(std::make_shared<StringData>(std::move(text), nullptr)));
}
Value undefined(std::string hint) {
  return Value::Data(Undefined{std::make_shared<StringData>(std::move(hint), nullptr)});
}

bool truthy(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_integral()) return value.integer() != 0;
  if (value.is<double>()) return value.as<double>() != 0;
  if (value.is_string()) return !value.text().empty();
  if (value.is_sequence()) return !value.items().empty();
  if (value.is_dict()) return !value.dict().items().empty();
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return equal_numbers(a, b);
  if (a.is_string() && b.is_string()) return a.text() == b.text();
  if (a.is_sequence() && b.is_sequence()) {
    return a.as<SequencePtr>()->kind == b.as<SequencePtr>()->kind && equal_items(a.items(), b.items());
  }
  if (a.is_dict() && b.is_dict()) return equal_dicts(a.dict(), b.dict());
  if (a.is<ObjectPtr>() && b.is<ObjectPtr>()) return a.as<ObjectPtr>() == b.as<ObjectPtr>();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool less(const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) return less_numbers(a, b);
  if (a.is_string() && b.is_string()) return a.text() < b.text();
  for (const SequenceKind kind : {SequenceKind::kList, SequenceKind::kTuple}) {
    if (!a.is_sequence(kind) || !b.is_sequence(kind)) continue;
    const auto& left = a.items();
    const auto& right = b.items();
    for (size_t idx = 0; idx < std::min(left.size(), right.size()); ++idx) {
      if (!equal(left[idx], right[idx])) return less(left[idx], right[idx]);
    }
    return left.size() < right.size();
  }
  fail("cannot order {} and {}", type_name(a), type_name(b));
}

size_t hash(const Value& value) {
  if (value.is_string()) return std::hash<std::string_view>{}(value.text());
  if (value.is_integral()) return std::hash<int64_t>{}(value.integer());
  if (value.is<double>()) {
    const double x = value.as<double>();
    if (x >= -0x1p63 && x < 0x1p63 && std::floor(x) == x) return std::hash<int64_t>{}(static_cast<int64_t>(x));
    return std::hash<double>{}(x);
  }
  if (value.is_sequence(SequenceKind::kTuple) || value.is_sequence(SequenceKind::kRange)) {
    size_t mixed = value.items().size();
    for (const Value& item : value.items()) mixed = mixed * 1000003 + hash(item);
    return mixed;
  }
  if (value.is_none() || value.is_undefined()) return value.is_none() ? 1 : 2;
  if (value.is<ObjectPtr>()) return std::hash<const void*>{}(value.as<ObjectPtr>().get());
  fail("unhashable type: {}", type_name(value));
}

std::string type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.is<bool>()) return "bool";
  if (value.is<int64_t>()) return "int";
  if (value.is<double>()) return "float";
  if (value.is_string()) return "str";
  if (value.is_dict()) return "dict";
  if (value.is_sequence()) {
    switch (value.as<SequencePtr>()->kind) {
      case SequenceKind::kList:
        return "list";
      case SequenceKind::kTuple:
        return "tuple";
      case SequenceKind::kRange:
        return "range";
      case SequenceKind::kKeys:
        return "dict_keys";
      case SequenceKind::kValues:
        return "dict_values";
      case SequenceKind::kItems:
        return "dict_items";
    }
  }
  switch (value.as<ObjectPtr>()->kind) {
    case Object::Kind::kIterator:
      return "generator";
    case Object::Kind::kNamespace:
      return "namespace";
    case Object::Kind::kLoop:
      return "loop";
    case Object::Kind::kFunction:
      return "function";
    case Object::Kind::kMethod:
      return "method";
    case Object::Kind::kMacro:
      return "macro";
  }
  return "object";
}

void fail_undefined(const Value& value) {
  const auto& hint = value.as<Undefined>().hint;
  fail("{}", hint == nullptr ? std::string("an undefined value was used") : hint->text);
}

void append_str(std::string& out, const Value& value, size_t limit_bytes) {
  if (value.is_undefined()) return;
  if (value.is_string()) {
    if (out.size() + value.text().size() > limit_bytes) fail_limit("text longer than {} bytes", limit_bytes);
    out += value.text();
    return;
  }
  append_repr(out, value, limit_bytes);
}

void append_repr(std::string& out, const Value& value, size_t limit_bytes) {
  ReprWriter(out, limit_bytes).write(value, 0);
}

// Python's repr(float): the shortest digits that read back, exponent form outside 1e-4 .. 1e16.
std::string float_repr(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), x, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(result.ptr - buffer));
  const bool negative = text[0] == '-';
  const size_t e_at = text.find('e');
  const int exponent = std::stoi(std::string(text.substr(e_at + 1)));
  std::string digits;
  for (char c : text.substr(negative ? 1 : 0, e_at - (negative ? 1 : 0))) {
    if (c != '.') digits += c;
  }
  std::string out = negative ? "-" : "";
  const int num_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (num_digits > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - num_digits), '0') + ".0";
  }
  return out + digits.substr(0, static_cast<size_t>(exponent + 1)) + "." +
         digits.substr(static_cast<size_t>(exponent + 1));
}

}  // namespace lk::jinja
