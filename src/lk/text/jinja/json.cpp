// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/json.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include "lk/base/utf8.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

Value string_from_json(Runtime& runtime, std::string_view text) {
  if (!utf8::is_valid(text)) fail("a variable holds text that is not valid UTF-8");
  return runtime.string(text);
}

Value convert(Runtime& runtime, const boost::json::value& json, int depth) {
  if (depth > kMaxValueDepth) fail_limit("a variable is nested more than {} levels deep", kMaxValueDepth);
  runtime.step();
  switch (json.kind()) {
    case boost::json::kind::null:
      return none();
    case boost::json::kind::bool_:
      return boolean(json.get_bool());
    case boost::json::kind::int64:
      return integer(json.get_int64());
    case boost::json::kind::uint64:
      if (json.get_uint64() > static_cast<uint64_t>(INT64_MAX)) fail("a variable holds an integer past 64 bits");
      return integer(static_cast<int64_t>(json.get_uint64()));
    case boost::json::kind::double_:
      return Value::Data(json.get_double());
    case boost::json::kind::string: {
      const auto& text = json.get_string();
      return string_from_json(runtime, std::string_view(text.data(), text.size()));
    }
    case boost::json::kind::array: {
      SequencePtr list = runtime.sequence();
      for (const auto& item : json.get_array()) list->push(convert(runtime, item, depth + 1));
      return Value::Data(std::move(list));
    }
    case boost::json::kind::object: {
      DictPtr dict = runtime.dict();
      for (const auto& entry : json.get_object()) {
        const std::string_view key(entry.key().data(), entry.key().size());
        dict->set(string_from_json(runtime, key), convert(runtime, entry.value(), depth + 1));
      }
      return Value::Data(std::move(dict));
    }
  }
  return none();
}

class Dumper {
 public:
  Dumper(Runtime& runtime, const Arguments& arguments) : runtime_(runtime), out_(runtime) {
    const auto bound = arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
    ensure_ascii_ = bound[0] != nullptr && truthy(*bound[0]);
    sort_keys_ = bound[3] != nullptr && truthy(*bound[3]);
    if (bound[1] != nullptr && !bound[1]->is_none()) {
      require_defined(*bound[1]);
      if (!bound[1]->is_string() && !bound[1]->is_integral()) fail("tojson: indent must be an integer or a string");
      StringBuilder unit(runtime);
      bound[1]->is_string() ? unit.append(bound[1]->text()) : unit.append_fill(bound[1]->integer());
      indent_ = unit.take_text();
      item_separator_.assign(1, ',');
    }
    if (bound[2] != nullptr && !bound[2]->is_none()) {
      const Value& pair = *bound[2];
      if (!pair.is_sequence() || pair.items().size() != 2 || !pair.items()[0].is_string() ||
          !pair.items()[1].is_string()) {
        fail("tojson: separators must be a pair of strings");
      }
      item_separator_ = pair.items()[0].text();
      key_separator_ = pair.items()[1].text();
    }
  }

  Value run(const Value& value) {
    write(value, 0);
    return out_.take();
  }

 private:
  void write(const Value& value, int depth) {
    runtime_.step();
    if (value.is_none()) {
      out_.append("null");
    } else if (value.is<bool>()) {
      out_.append(value.as<bool>() ? "true" : "false");
    } else if (value.is<int64_t>()) {
      out_.append(std::to_string(value.as<int64_t>()));
    } else if (value.is<double>()) {
      out_.append(float_text(value.as<double>()));
    } else if (value.is_string()) {
      write_string(value.text());
    } else if (value.is_sequence(SequenceKind::kList) || value.is_sequence(SequenceKind::kTuple)) {
      out_.append("[");
      bool first = true;
      for (const Value& item : value.items()) {
        separate(first, depth + 1);
        write(item, depth + 1);
      }
      close(first, depth, "]");
    } else if (value.is_dict()) {
      write_dict(value.dict(), depth);
    } else {
      fail("a value of type {} is not JSON serializable", type_name(value));
    }
  }

  void write_dict(const Dict& dict, int depth) {
    std::vector<std::pair<Value, Value>> items = dict.items();
    if (sort_keys_) {
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto& a, const auto& b) { return runtime_.less_than(a.first, b.first); });
    }
    out_.append("{");
    bool first = true;
    for (const auto& [key, value] : items) {
      separate(first, depth + 1);
      write_string(key_text(key));
      out_.append(key_separator_);
      write(value, depth + 1);
    }
    close(first, depth, "}");
  }

  static std::string float_text(double x) {
    if (std::isnan(x)) return "NaN";
    if (std::isinf(x)) return x > 0 ? "Infinity" : "-Infinity";
    return float_repr(x);
  }

  static std::string key_text(const Value& key) {
    if (key.is_string()) return key.text();
    if (key.is_none()) return "null";
    if (key.is<bool>()) return key.as<bool>() ? "true" : "false";
    if (key.is<int64_t>()) return std::to_string(key.as<int64_t>());
    if (key.is<double>()) return float_text(key.as<double>());
    fail("a dict key of type {} is not JSON serializable", type_name(key));
  }

  void separate(bool& first, int depth) {
    if (!first) out_.append(item_separator_);
    first = false;
    new_line(depth);
  }
  void close(bool empty, int depth, std::string_view bracket) {
    if (!empty) new_line(depth);
    out_.append(bracket);
  }
  void new_line(int depth) {
    if (!indent_.has_value()) return;
    out_.append("\n");
    if (!indent_->empty()) out_.append_fill(depth, *indent_);
  }

  void write_string(std::string_view text) {
    runtime_.step(static_cast<int64_t>(text.size()));
    out_.append("\"");
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      const char32_t c = next_code_point(text, pos);
      static constexpr std::string_view kPlain = "\"\\\n\r\t\f\b";
      static constexpr std::string_view kNames = "\"\\nrtfb";
      if (const size_t at = c < 0x80 ? kPlain.find(static_cast<char>(c)) : std::string_view::npos;
          at != std::string_view::npos) {
        out_.append("\\");
        out_.append(kNames.substr(at, 1));
      } else if (c < 0x20 || (ensure_ascii_ && c >= 0x7F)) {
        if (c >= 0x10000) {
          const auto rest = static_cast<uint32_t>(c) - 0x10000;
          out_.append(fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF)));
        } else {
          out_.append(fmt::format("\\u{:04x}", static_cast<uint32_t>(c)));
        }
      } else {
        out_.append(text.substr(begin, pos - begin));
      }
    }
    out_.append("\"");
  }

  Runtime& runtime_;
  StringBuilder out_;
  bool ensure_ascii_ = false;
  bool sort_keys_ = false;
  std::optional<std::string> indent_;
  std::string item_separator_ = ", ";
  std::string key_separator_ = ": ";
};

}  // namespace

Value from_json(Runtime& runtime, const boost::json::value& json) { return convert(runtime, json, 0); }

Value to_json(Runtime& runtime, const Value& value, const Arguments& arguments) {
  return Dumper(runtime, arguments).run(value);
}

}  // namespace lk::jinja
