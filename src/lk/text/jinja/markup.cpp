// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/markup.h"

#include <algorithm>

namespace lk::jinja {

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value as_markup(Runtime& runtime, const Value& value) {
  if (value.is_markup()) return value;
  return runtime.markup(runtime.str(value));
}

Value escaped(Runtime& runtime, const Value& value, bool parts) {
  if (value.is_markup() || value.is_number() || value.is_none() || value.is_undefined()) return value;
  if (parts && value.is_sequence(SequenceKind::kTuple)) {
    SequencePtr out = runtime.sequence(SequenceKind::kTuple);
    for (const Value& item : value.items()) out->push(escaped(runtime, item));
    return Value::Data(std::move(out));
  }
  if (parts && value.is_dict()) {
    DictPtr out = runtime.dict();
    for (const auto& [key, item] : value.dict().items()) out->set(key, escaped(runtime, item));
    return Value::Data(std::move(out));
  }
  return runtime.string(escape_html(runtime.str(value)));
}

Value markup_result(Runtime& runtime, const Value& result) {
  if (result.is_string()) return as_markup(runtime, result);
  if (!result.is_sequence()) return result;
  SequencePtr out = runtime.sequence(result.as<SequencePtr>()->kind);
  for (const Value& item : result.items()) out->push(markup_result(runtime, item));
  return Value::Data(std::move(out));
}

Arguments markup_arguments(Runtime& runtime, std::string_view method, const Arguments& arguments) {
  Arguments changed = arguments;
  const auto change = [&](size_t position, std::string_view name) {
    if (position < changed.positional.size())
      changed.positional[position] = escaped(runtime, changed.positional[position]);
    for (auto& [key, value] : changed.named)
      if (key == name) value = escaped(runtime, value);
  };
  if (method == "replace") change(1, "new");
  if (method == "ljust" || method == "rjust" || method == "center") change(1, "fillchar");
  if (method == "join" && !changed.positional.empty()) {
    SequencePtr out = runtime.sequence();
    const SequencePtr items = runtime.to_list(changed.positional[0]);
    for (const Value& item : items->items()) out->push(escaped(runtime, item));
    changed.positional[0] = Value::Data(std::move(out));
  }
  if (method == "format") {
    for (Value& value : changed.positional) value = escaped(runtime, value);
    for (auto& [key, value] : changed.named) value = escaped(runtime, value);
  }
  return changed;
}

}  // namespace lk::jinja
